"""Results are apart from what a run reads: none takes the place of its files, lies around them, or in them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from monai_chunked.machine.relations import identity, relation_of_paths, relation_of_urls
from monai_chunked.machine.store_names import is_url
from monai_chunked.outputs.base import UsedFile

__all__ = ["check_apart"]


def check_apart(taken: Iterable[Path] | Iterable[str], used: Sequence[UsedFile], meant: Iterable[Path] = ()) -> None:
    """Refuse results that would replace what a run reads, or be written into it.

    Args:
        taken: paths or URLs that results take, and those that they need until they are complete.
        used: what the run reads.
        meant: folders for results that lie in what the run reads.

    Raises:
        FileExistsError: when a result takes the place of what is read, or lies around it, or in it.
    """
    exempt = {own for folder in meant if (own := identity(folder))}
    exempt_names = {os.path.realpath(folder) for folder in meant}
    for path in taken:
        for file in used:
            if is_url(path) or is_url(file.path):
                relation = relation_of_urls(str(path), file.path)
            else:
                relation = relation_of_paths(str(path), file.path, exempt, exempt_names)
            if relation:
                reason = (
                    f"the result needs this name, {relation} {file.path}, which {file.name} is read from; that is "
                    f"refused, also with overwrite=True, or what is read would be lost. Choose another output_dir, or "
                    f"another output_postfix"
                )
                raise FileExistsError(errno.EEXIST, reason, str(path))
