"""Writing OME-Zarr stores: the part of :py:class:`ZarrOutput` that needs zarr."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from monai_chunked.outputs import ngff
from monai_chunked.outputs.base import Metadata, OutputWriter, Result
from monai_chunked.outputs.storage_chunks import Collector, Region
from monai_chunked.outputs.zarr import Layout
from monai_chunked.outputs.zarr_places import Place
from monai_chunked.plan import Box

__all__ = ["ZarrWriter"]

logger = logging.getLogger(__name__)


class ZarrWriter(OutputWriter):
    """Writes a store for each image.

    Args:
        result: what is written.
        places: of the stores.
        images: what is written to them; none if all of them are complete.
    """

    def __init__(self, result: Result, places: Sequence[Place], images: Sequence[_Image]) -> None:
        self.result = result
        self.places = places
        self.images = images
        self.complete = not images

    @classmethod
    def create(cls, result: Result, places: Sequence[Place], layout: Layout) -> ZarrWriter:
        """Begin stores afresh."""
        images = []
        try:
            for place, metadata in zip(places, result.metadata):
                logger.info("writing %s", place.name)
                group = zarr.create_group(place.create(), zarr_format=3)
                names = ngff.axis_names(metadata, len(result.cuts))
                _create_level(group, 0, result.shape[1:], _numpy_dtype(result.dtype), layout, names)
                images.append(_Image(group, place, metadata, layout))
                place.flush()
        except BaseException:
            for place in places:
                place.abandon(keep=False)
            raise
        return cls(result, places, images)

    @classmethod
    def resume(cls, result: Result, places: Sequence[Place], layout: Layout) -> ZarrWriter:
        """Go on with stores that an earlier run left."""
        groups = [_open(place.begun() if place.is_begun else place.published(), place, result) for place in places]
        if all(place.is_begun for place in places):
            pairs = zip(groups, places, result.metadata)
            return cls(result, places, [_Image(group, place, each, layout) for group, place, each in pairs])
        for group, place in zip(groups, places):  # they are published when all of them are complete
            if "ome" not in group.attrs:
                raise OSError(f"{place.name} is not complete, though other images of its batch are")
        return cls(result, places, [])

    @classmethod
    def load(cls, result: Result, places: Sequence[Place]) -> Any:
        """What :py:meth:`finish` returned."""
        arrays = [_level(_open(place.published(), place, result), 0) for place in places]
        return arrays[0] if len(arrays) == 1 else arrays

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        with _told(self.places[image], self.result):
            self.images[image].write(box, chunk)

    def flush(self, last: bool = False) -> Iterable[tuple[int, Box]]:
        """Storage chunks that are not whole are in memory only, and so are the chunks that have a part in them."""
        for image in self.images if last else ():
            with _told(image.place, self.result):
                image.write_rest()
        for place in self.places:
            place.flush()
        return [(k, box) for k, image in enumerate(self.images) for box in image.collector.written()]

    def read(self, image: int, box: Box) -> torch.Tensor:
        place = self.places[image]
        try:
            return torch.as_tensor(np.asarray(self.images[image].array[(slice(None), *box)]))
        except (RuntimeError, ValueError) as error:  # of a codec
            raise OSError(errno.EIO, f"a storage chunk is damaged ({error})", place.name) from error

    def finish(self) -> Any:
        for image in self.images:
            with _told(image.place, self.result):
                image.complete()
        for place in self.places:
            place.flush()  # all of them, before the first has its name: then every one of them counts as complete
        for place in self.places:
            place.publish()
        return self.load(self.result, self.places)

    def abandon(self) -> None:
        for place in self.places:
            place.abandon(self.result.resumable)


class _Image:
    """Writes the store of one image.

    Args:
        group: of the store, with its first level.
        place: of the store.
        metadata: of the image.
        layout: of what is created from now on.
    """

    def __init__(self, group: zarr.Group, place: Place, metadata: Metadata, layout: Layout) -> None:
        self.group = group
        self.place = place
        self.metadata = metadata
        self.layout = layout
        # zarr compares each storage chunk with zeros, and takes longer for it than for compressing it
        self.array = _level(group, 0).with_config({"write_empty_chunks": True})
        unit = self.array.shards or self.array.chunks
        self.collector = Collector(self.array.shape, unit[1:])

    def write(self, box: Box, chunk: torch.Tensor) -> None:
        self._put(self.collector.add(box, chunk.detach().cpu().numpy()))

    def write_rest(self) -> None:
        """Storage chunks that are held, though they are not whole."""
        self._put(self.collector.rest())

    def _put(self, regions: Iterable[tuple[Region, np.ndarray]]) -> None:
        for region, values in regions:
            if values.any() or (values.dtype.kind == "f" and np.signbit(values).any()):
                self.array[region] = values  # what is not written reads as zeros

    def complete(self) -> None:
        """Write all that is missing; last what makes an image of it."""
        self.write_rest()
        shapes = ngff.level_shapes(self.array.shape, self.layout.levels)
        nearest = self.array.dtype.kind != "f"
        names = ngff.axis_names(self.metadata, self.array.ndim - 1)
        for level in range(1, len(shapes)):
            array = _create_level(self.group, level, shapes[level], self.array.dtype, self.layout, names)
            _fill_level(_level(self.group, level - 1), array, nearest)
        name = PurePosixPath(self.place.name).name.removesuffix(".ome.zarr")
        self.group.update_attributes(ngff.attributes(self.metadata, name, shapes, nearest, self.layout.label))


def _create_level(
    group: zarr.Group, level: int, shape: Sequence[int], dtype: np.dtype, layout: Layout, names: Sequence[str]
) -> zarr.Array:
    chunk = layout.chunk if layout.shard else tuple(map(min, layout.chunk, shape))
    compression = layout.compression_level
    return group.create_array(
        str(level),
        shape=tuple(shape),
        dtype=dtype,
        chunks=chunk,
        shards=layout.shard,
        compressors=None if compression is None else ZstdCodec(level=compression),
        fill_value=0,
        dimension_names=names,
        overwrite=True,
    )


def _fill_level(above: zarr.Array, array: zarr.Array, nearest: bool) -> None:
    """From the level above, one storage chunk or shard at a time."""
    unit = array.shards or array.chunks
    starts = [range(0, size, step) for size, step in zip(array.shape, unit)]
    for start in itertools.product(*starts):
        region = tuple(slice(a, min(a + step, size)) for a, step, size in zip(start, unit, array.shape))
        source = (region[0], *(slice(2 * s.start, 2 * s.stop) for s in region[1:]))
        array[region] = ngff.downsample(np.asarray(above[source]), nearest)


def _open(store: Store, place: Place, result: Result) -> zarr.Group:
    """The group of a store that holds the result."""
    try:
        group = zarr.open_group(store, mode="r" if store.read_only else "r+", zarr_format=3)
        array = _level(group, 0)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.name) from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise OSError(errno.EIO, f"it is no Zarr store any more ({error})", place.name) from error
    shape, dtype = result.shape[1:], _numpy_dtype(result.dtype)
    if (array.shape, array.dtype) != (shape, dtype):
        reason = f"it holds {array.dtype} of shape {array.shape}, not {dtype} of shape {shape}"
        raise OSError(errno.EIO, reason, place.name)
    return group


def _level(group: zarr.Group, level: int) -> zarr.Array:
    array = group[str(level)]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{array} is no array")
    return array


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype


@contextmanager
def _told(place: Place, result: Result) -> Iterator[None]:
    """Adds to errors of the disk what was written where."""
    try:
        yield
    except OSError as error:
        size = prod(result.shape) * result.dtype.itemsize
        reason = f"{error.strerror or error}; the whole output is {size:,} bytes before compression"
        raise OSError(error.errno, reason, place.name) from error
