"""The files that a call reads, which its results must leave as they are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from monai_chunked.inputs.lazy.files_under import files_of_metadata, files_under
from monai_chunked.inputs.source import Source
from monai_chunked.machine.mapped import MappedFiles
from monai_chunked.outputs.base import UsedFile
from monai_chunked.run.settings import Settings
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["used_files"]


def used_files(settings: Settings, source: Source, reads: Mapping[str, Any]) -> tuple[UsedFile, ...]:
    """All of a call that are there, each once.

    That a file was read already makes no difference: it is a loss all the same.

    Args:
        settings: what is asked for.
        source: where windows are read from.
        reads: what else is read, by the name of the parameter: a source, or a network with its further arguments.
    """
    mapped = MappedFiles()
    known: dict[str, Any] = {"inputs": source, "mask": settings.mask, "roi_weight_map": settings.roi_weight_map}
    found = {file: name for name, value in reversed({**known, **reads}.items()) for file in _files_of(value, mapped)}
    return tuple(UsedFile(file, name) for file, name in found.items() if "://" in file or os.path.exists(file))


def _files_of(value: Any, mapped: MappedFiles) -> Iterator[str]:
    if isinstance(value, Source):
        yield from files_of_metadata(value.metadata)
        yield from files_under(value.origin, mapped)
    elif isinstance(value, BoundNetwork):
        network = value.network
        weights = [*network.parameters(), *network.buffers()] if isinstance(network, torch.nn.Module) else []
        for each in itertools.chain(weights, value.args, value.kwargs.values()):
            yield from files_under(each, mapped)
    else:
        yield from files_under(value, mapped)
