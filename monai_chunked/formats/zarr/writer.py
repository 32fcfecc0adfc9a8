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

import numpy as np
import torch
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from monai_chunked.formats.zarr import ngff
from monai_chunked.formats.zarr.images import ZarrImage, ZarrImages
from monai_chunked.formats.zarr.places import LocalPlace, Place
from monai_chunked.formats.zarr.storage_chunks import Collector
from monai_chunked.formats.zarr.store_layout import StoreLayout
from monai_chunked.outputs.base import Metadata, Result, ResumableWriter
from monai_chunked.outputs.file_output import numpy_dtype
from monai_chunked.plan.boxes import Box, Region

__all__ = ["ZarrWriter"]


logger = logging.getLogger(__name__)


class ZarrWriter(ResumableWriter):
    """Writes a store for each image.

    Args:
        result: what is written.
        places: of the stores.
        images: what is written to them; none if all stores are complete.
    """

    def __init__(self, result: Result, places: Sequence[Place], images: Sequence[_StoredImage]) -> None:
        self.result = result
        self.places = places
        self.images = images
        self.complete = not images

    @classmethod
    def create(cls, result: Result, places: Sequence[Place], layout: StoreLayout) -> ZarrWriter:
        """Begin stores afresh."""
        images = []
        try:
            for place, metadata in zip(places, result.metadata):
                logger.info("writing %s", place.name)
                group = zarr.create_group(place.create(), zarr_format=3)
                placing = ngff.placing(metadata, len(result.cuts))
                _create_level(
                    group,
                    0,
                    shape=[result.shape[1:][d] for d in placing.order],
                    dtype=numpy_dtype(result.dtype),
                    layout=layout.along(placing.order),
                    names=placing.axes,
                )
                images.append(_StoredImage(group, place, metadata, layout))
                place.flush()
        except BaseException:
            for place in places:
                place.abandon(keep=False)
            raise
        return cls(result, places, images)

    @classmethod
    def resume(cls, result: Result, places: Sequence[LocalPlace], layout: StoreLayout) -> ZarrWriter:
        """Go on with stores that an earlier run left."""
        stores = [place.begun() if place.is_begun else place.published() for place in places]
        groups = _open_all(stores, places, result)
        if all(place.is_begun for place in places):
            images = [
                _StoredImage(group, place, metadata, layout, resumed=True)
                for group, place, metadata in zip(groups, places, result.metadata)
            ]
            return cls(result, places, images)
        for group, place in zip(groups, places):  # all stores are complete before one is published
            if "ome" not in group.attrs:
                raise OSError(f"{place.name} is not complete, though other images of its batch are")
        return cls(result, places, [])

    @classmethod
    def load(cls, result: Result, places: Sequence[Place]) -> ZarrImage | ZarrImages:
        """What :py:meth:`finish` returned."""
        groups = _open_all([place.published() for place in places], places, result)
        images = [ZarrImage(_level(group, 0).async_array) for group in groups]
        for image, metadata in zip(images, result.metadata):
            image.dimensions = ngff.placing(metadata, len(result.cuts)).order
        return images[0] if len(images) == 1 else ZarrImages(images)

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
            return torch.from_numpy(self.images[image].read(box))
        except (RuntimeError, ValueError) as error:  # a codec raises these
            raise OSError(errno.EIO, f"a storage chunk is damaged ({error})", place.name) from error

    def finish(self) -> ZarrImage | ZarrImages:
        for image in self.images:
            with _told(image.place, self.result):
                image.complete()
        for place in self.places:
            place.flush()  # all stores, before the first has its name: from then on every one counts as complete
        for place in self.places:
            place.publish()
        return self.load(self.result, self.places)

    def abandon(self) -> None:
        for place in self.places:
            place.abandon(self.result.resumable)


class _StoredImage:
    """Writes the store of one image.

    Args:
        group: of the store, with its first level.
        place: of the store.
        metadata: of the image.
        layout: of the levels that are created.
        resumed: whether an earlier run has written to it.
    """

    def __init__(
        self, group: zarr.Group, place: Place, metadata: Metadata, layout: StoreLayout, *, resumed: bool = False
    ) -> None:
        self.group = group
        self.place = place
        self.metadata = metadata
        # zarr compares each storage chunk with zeros, and takes longer for it than for compressing it
        self.array = _level(group, 0).with_config({"write_empty_chunks": True})
        self.placing = ngff.placing(metadata, self.array.ndim - 1)
        self.order = self.placing.order
        self.layout = layout.along(self.order)
        unit = self.array.shards or self.array.chunks
        back = np.argsort(self.order)
        self.collector = Collector([self.array.shape[d] for d in back], [unit[d] for d in back][1:])
        self.greatest: int | None = None if resumed else 0

    def write(self, box: Box, chunk: torch.Tensor) -> None:
        values = chunk.detach().cpu().numpy()
        if self.layout.label and self.greatest is not None:
            self.greatest = max(self.greatest, int(values.max()))  # PyTorch has no maximum of most unsigned integers
        self._put(self.collector.add(box, values))

    def write_rest(self) -> None:
        """Write storage chunks that are held, though they are not whole."""
        self._put(self.collector.rest())

    def read(self, box: Box) -> np.ndarray:
        """A chunk ``(C, *chunk)``."""
        stored = np.asarray(self.array[self._in_store((slice(None), *box))])
        return np.ascontiguousarray(stored.transpose(np.argsort(self.order)))

    def _put(self, regions: Iterable[tuple[Region, np.ndarray]]) -> None:
        for region, values in regions:
            if values.any() or (values.dtype.kind == "f" and np.signbit(values).any()):
                # what is not written reads as zeros
                self.array[self._in_store(region)] = values.transpose(self.order)

    def _in_store(self, region: Region) -> Region:
        return tuple(region[d] for d in self.order)

    def complete(self) -> None:
        """Write all that is missing; last the attributes that make an image of the store."""
        self.write_rest()
        shapes = ngff.level_shapes(self.array.shape, self.layout.levels)
        nearest = self.array.dtype.kind != "f"
        dtype, layout, names = self.array.dtype, self.layout, self.placing.axes
        for level in range(1, len(shapes)):
            array = _create_level(self.group, level, shape=shapes[level], dtype=dtype, layout=layout, names=names)
            _fill_level(_level(self.group, level - 1), array, nearest)
        name = PurePosixPath(self.place.name).name.removesuffix(".ome.zarr")
        label = None
        if self.layout.label:
            if self.greatest is None:
                self.greatest = max(int(np.max(self.array[region])) for region in _regions(self.array))
            label = ngff.image_label(
                self.greatest, self.layout.label_names, self.place.path_to(self.metadata.get("ome_zarr"))
            )
        self.group.update_attributes(ngff.attributes(self.metadata, name, shapes, nearest=nearest, label=label))


def _create_level(
    group: zarr.Group, level: int, *, shape: Sequence[int], dtype: np.dtype, layout: StoreLayout, names: Sequence[str]
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
    """Fill a level from the one above, one storage chunk or shard at a time."""
    for region in _regions(array):
        source = (region[0], *(slice(2 * s.start, 2 * s.stop) for s in region[1:]))
        array[region] = ngff.downsample(np.asarray(above[source]), nearest)


def _regions(array: zarr.Array) -> Iterator[Region]:
    """The regions of the storage chunks or shards."""
    unit = array.shards or array.chunks
    for start in itertools.product(*(range(0, size, step) for size, step in zip(array.shape, unit))):
        yield tuple(slice(k, min(k + step, size)) for k, step, size in zip(start, unit, array.shape))


def _open_all(stores: Sequence[Store], places: Sequence[Place], result: Result) -> list[zarr.Group]:
    """The groups of stores that hold the images of a result."""
    return [_open(store, place, result, image) for image, (store, place) in enumerate(zip(stores, places))]


def _open(store: Store, place: Place, result: Result, image: int) -> zarr.Group:
    """The group of a store that holds an image of the result."""
    try:
        group = zarr.open_group(store, mode="r" if store.read_only else "r+", zarr_format=3)
        array = _level(group, 0)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.name) from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise OSError(errno.EIO, f"it is no Zarr store any more ({error})", place.name) from error
    order = ngff.placing(result.metadata[image], len(result.cuts)).order
    shape, dtype = tuple(result.shape[1:][d] for d in order), numpy_dtype(result.dtype)
    if (array.shape, array.dtype) != (shape, dtype):
        reason = f"it holds {array.dtype} of shape {array.shape}, not {dtype} of shape {shape}"
        raise OSError(errno.EIO, reason, place.name)
    return group


def _level(group: zarr.Group, level: int) -> zarr.Array:
    array = group[str(level)]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{array} is no array")
    return array


@contextmanager
def _told(place: Place, result: Result) -> Iterator[None]:
    """Name the store, and what space would be enough, in errors of the system."""
    try:
        yield
    except OSError as error:
        size = prod(result.shape) * result.dtype.itemsize
        reason = f"{error.strerror or error}; the whole output is {size:,} bytes before compression"
        raise OSError(error.errno, reason, place.name) from error
