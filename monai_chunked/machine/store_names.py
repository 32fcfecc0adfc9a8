"""Names of stores: which are URLs, and how those of Zarr end."""

from __future__ import annotations

import os

__all__ = ["STORE_ENDINGS", "is_url", "without_store_endings"]


STORE_ENDINGS = (".zip", ".ozx", ".zarr", ".ome")
"""In the order in which they are taken off."""


def without_store_endings(name: str) -> str:
    """
    >>> without_store_endings("embryo.ome.zarr"), without_store_endings("embryo.ome.zarr.zip")
    ('embryo', 'embryo')
    >>> without_store_endings("embryo.ozx"), without_store_endings("scan.v1.zarr"), without_store_endings("scan.nii.gz")
    ('embryo', 'scan.v1', 'scan.nii.gz')
    """
    bare = name
    for ending in STORE_ENDINGS:
        if ending != ".ome" or bare != name:
            bare = bare[: -len(ending)] if bare.lower().endswith(ending) else bare
    return bare or name


def is_url(path: str | os.PathLike[str]) -> bool:
    """
    >>> is_url("s3://bucket/embryo.ome.zarr"), is_url("/data/embryo.ome.zarr")
    (True, False)
    """
    return "://" in str(path)
