"""How the names of Zarr stores end."""

from __future__ import annotations

__all__ = ["STORE_ENDINGS", "without_store_endings"]


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
    for each in STORE_ENDINGS:
        if each != ".ome" or bare != name:
            bare = bare[: -len(each)] if bare.lower().endswith(each) else bare
    return bare or name
