"""From the operations that undo a preprocessing to what each voxel of the patient's grid is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from monai_chunked.resampling.axes import Axis, Kind, Resampling, Unstreamable
from monai_chunked.resampling.oblique import Oblique
from monai_chunked.transforms.coordinates import grid_sample_axes, interpolate_axes
from monai_chunked.transforms.tracing import Operation, Trace
from monai_chunked.transforms.trial import check_kind

__all__ = ["resamplings"]


def resamplings(trace: Trace) -> tuple[Resampling, ...]:
    """What is done, as few resamplings as there are interpolations; none at all if voxels stay where they are.

    Args:
        trace: what MONAI does to the volume.

    Raises:
        Unstreamable: when an operation is not known, or needs more than what is near a voxel.
    """
    grid = _Grid(trace.shape[1:])
    for operation in trace.operations:
        try:
            OPERATIONS.get(operation.name, _unknown)(grid, operation)
        except Unstreamable as error:
            raise Unstreamable(f"{operation.by}: {error}") from None
    return grid.finish()


class _Grid:
    """A volume on its way back: the last grid that was resampled, and where its voxels are now.

    Args:
        size: spatial size of the volume.

    Attributes:
        dims: for each dimension of the volume, the dimension of the grid.
        index: for each dimension of the volume, and place along it, the place in the grid; -1: a zero.
        lead: number of dimensions in front of the spatial ones.
        wide: whether voxels are of a wider dtype than they will be, because they were made in it.
        resamplings: the resamplings so far.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.dims = list(range(len(size)))
        self.index = [np.arange(n) for n in size]
        self.sizes = list(size)
        self.lead = 1
        self.wide = False
        self.resamplings: list[Resampling] = []

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(map(len, self.index))

    def spatial(self, dim: int, operation: Operation) -> int:
        """A dimension counted from the first spatial one."""
        spatial = dim % (self.lead + len(self.dims)) - self.lead
        if spatial < 0:
            raise Unstreamable(f"channels are changed by {operation.name}")
        return spatial

    def swap(self, first: int, second: int) -> None:
        """Two dimensions change places."""
        self.dims[first], self.dims[second] = self.dims[second], self.dims[first]
        self.index[first], self.index[second] = self.index[second], self.index[first]

    def resample(self, axes: Sequence[Axis], kind: Kind, oblique: Oblique | None = None) -> None:
        """Make a grid; chunks go on along it in the order in which they come.

        Args:
            axes: for each dimension of the volume, made of places in the volume.
        """
        if self.wide:
            raise Unstreamable("it interpolates what was not rounded to float32 before")
        check_kind(kind, torch.float32 if axes[0].low_weight.dtype == np.float32 else torch.float64)
        placed: dict[int, Axis] = {}
        turned = []
        for d, axis in enumerate(axes):
            made = _read_through(axis, self.index[d], self.sizes[self.dims[d]])
            if kind == "copy":
                made = _doubted(made, axis, self.index[d])
            turned.append(_falls(made.last))
            placed[self.dims[d]] = made.take(np.arange(len(made))[::-1]) if turned[d] else made
        if oblique is not None:
            oblique = self._placed(oblique, turned)
        order = tuple(range(len(axes)))
        self.resamplings.append(Resampling(tuple(placed[d] for d in order), order, tuple(self.dims), kind, oblique))
        self.sizes = [len(placed[d]) for d in order]
        self.index = [np.arange(len(axis))[::-1] if turn else np.arange(len(axis)) for axis, turn in zip(axes, turned)]

    def _placed(self, oblique: Oblique, turned: Sequence[bool]) -> Oblique:
        """With dimensions of the grid instead of the volume, and made of voxels of the grid."""
        base: list[np.ndarray] = [np.zeros(0)] * len(self.dims)
        index: list[np.ndarray] = list(base)
        for d, dim in enumerate(self.dims):
            base[dim] = oblique.base[d][::-1] if turned[d] else oblique.base[d]
            index[dim] = self.index[d]
        return replace(oblique, base=tuple(base), index=tuple(index))

    def finish(self) -> tuple[Resampling, ...]:
        if self.wide:
            raise Unstreamable("its result is not rounded to float32")
        order = tuple(self.dims)
        same = all(np.array_equal(index, np.arange(self.sizes[d])) for d, index in zip(self.dims, self.index))
        if not self.resamplings:
            if same and order == tuple(range(len(order))):
                return ()
            copied = {d: Axis.copy(index, self.sizes[d]) for d, index in zip(self.dims, self.index)}
            return (Resampling(tuple(copied[d] for d in sorted(copied)), order, order, "copy"),)
        last = self.resamplings[-1]
        axes = list(last.axes)
        oblique = last.oblique
        for d, index in zip(self.dims, self.index):
            axes[d] = axes[d].take(index)
            if oblique is not None:
                base = np.where(index < 0, np.nan, oblique.base[d][np.maximum(index, 0)])
                oblique = replace(oblique, base=(*oblique.base[:d], base, *oblique.base[d + 1 :]))
        return (*self.resamplings[:-1], replace(last, axes=tuple(axes), order=order, oblique=oblique))


def _falls(index: np.ndarray) -> bool:
    inside = index[index >= 0]
    return bool(inside.size and inside[0] > inside[-1])


def _read_through(axis: Axis, index: np.ndarray, size: int) -> Axis:
    """An axis made of places in the volume, as one made of the voxels of the grid that are there."""

    def voxels(places: np.ndarray) -> np.ndarray:
        return np.where(places < 0, -1, index[np.maximum(places, 0)])

    low, high = voxels(axis.low), voxels(axis.high)
    low_weight = np.where(low < 0, 0, axis.low_weight).astype(axis.low_weight.dtype)
    high_weight = np.where(high < 0, 0, axis.high_weight).astype(axis.high_weight.dtype)
    # some of the places that may be needed are in what was added at the border, where there is no voxel
    first, last = np.full_like(axis.first, size), np.full_like(axis.last, -1)
    for step in range(int((axis.last - axis.first).max(initial=0)) + 1):
        voxel = voxels(np.where(axis.first < 0, -1, np.minimum(axis.first + step, axis.last)))
        first, last = np.where(voxel < 0, first, np.minimum(first, voxel)), np.maximum(last, voxel)
    return Axis(low, high, low_weight, high_weight, np.where(last < 0, -1, first), last, size)


def _doubted(made: Axis, axis: Axis, index: np.ndarray) -> Axis:
    """The same, but high is the other one where a voxel may be a copy of one that is there or of a zero beside it."""
    first, last = (index[np.maximum(end, 0)] < 0 for end in (axis.first, axis.last))
    doubt = (axis.first >= 0) & (first != last)
    return replace(made, high=np.where(doubt, np.where(made.low < 0, made.last, -1), made.high))


def _unknown(grid: _Grid, operation: Operation) -> None:
    raise Unstreamable(f"the operation {operation.name} is not one that can be done chunk by chunk")


def _nothing(grid: _Grid, operation: Operation) -> None:
    if operation.shape[grid.lead :] != grid.size:
        _unknown(grid, operation)


def _cast(grid: _Grid, operation: Operation) -> None:
    if not operation.dtype.is_floating_point or operation.dtype.itemsize < 4:
        raise Unstreamable(f"voxels become {operation.dtype}")
    if operation.dtype == torch.float32:
        grid.wide = False


def _unsqueeze(grid: _Grid, operation: Operation) -> None:
    if operation.args[0] != 0:
        _unknown(grid, operation)
    grid.lead += 1


def _squeeze(grid: _Grid, operation: Operation) -> None:
    if operation.args[0] not in (0, [0]) or grid.lead < 2:
        _unknown(grid, operation)
    grid.lead -= 1


def _flip(grid: _Grid, operation: Operation) -> None:
    for dim in operation.args[0]:
        d = grid.spatial(dim, operation)
        grid.index[d] = grid.index[d][::-1]


def _permute(grid: _Grid, operation: Operation) -> None:
    dims = operation.args[0]
    if list(dims[: grid.lead]) != list(range(grid.lead)):
        raise Unstreamable(f"channels are moved by {operation.name}")
    moved = [grid.spatial(dim, operation) for dim in dims[grid.lead :]]
    grid.dims, grid.index = [grid.dims[d] for d in moved], [grid.index[d] for d in moved]


def _transpose(grid: _Grid, operation: Operation) -> None:
    first, second = (grid.spatial(dim, operation) for dim in operation.args)
    grid.swap(first, second)


def _rot90(grid: _Grid, operation: Operation) -> None:
    times, dims = operation.args
    first, second = (grid.spatial(dim, operation) for dim in dims)
    for _ in range(times % 4):
        grid.index[second] = grid.index[second][::-1]
        grid.swap(first, second)


def _slice(grid: _Grid, operation: Operation) -> None:
    dim, start, stop, by = list(operation.args) + [0, None, None, 1][len(operation.args) :]
    if dim % (grid.lead + len(grid.dims)) < grid.lead:
        _nothing(grid, operation)
        return
    d = grid.spatial(dim, operation)
    grid.index[d] = grid.index[d][slice(start, stop, by)]


def _pad(grid: _Grid, operation: Operation) -> None:
    amounts, value = operation.args[0], operation.args[1] if len(operation.args) > 1 else 0
    if value != 0:
        raise Unstreamable(f"voxels of value {value} are added at the border")
    pairs = [(amounts[k], amounts[k + 1]) for k in range(0, len(amounts), 2)]
    for dim, (before, after) in zip(range(-1, -len(pairs) - 1, -1), pairs):
        if (before, after) == (0, 0):
            continue
        d = grid.spatial(dim, operation)
        inside = grid.index[d][max(-before, 0) : len(grid.index[d]) - max(-after, 0)]
        grid.index[d] = np.concatenate([np.full(max(before, 0), -1), inside, np.full(max(after, 0), -1)])


def _grid_sample(grid: _Grid, operation: Operation) -> None:
    coordinates, mode, padding_mode, align_corners = operation.args
    if len(grid.dims) != 3:
        raise Unstreamable("it interpolates in two dimensions, which PyTorch rounds in another way")
    if mode == 2 or not isinstance(coordinates, tuple):
        _unknown(grid, operation)
    _, theta, size, same = coordinates
    if same != align_corners:
        _unknown(grid, operation)
    axes, kind, oblique = grid_sample_axes(theta[0], grid.size, size, mode, padding_mode, align_corners)
    grid.resample(axes, kind, oblique)
    grid.wide = operation.dtype != torch.float32 and kind != "copy"


def _interpolate(mode: str) -> Callable[[_Grid, Operation], None]:
    def resample(grid: _Grid, operation: Operation) -> None:
        align_corners = len(operation.args) > 1 and operation.args[1] is True
        axes, kind = interpolate_axes(
            grid.size, operation.shape[grid.lead :], mode, align_corners=align_corners, dtype=operation.dtype
        )
        grid.resample(axes, kind)

    return resample


OPERATIONS: dict[str, Callable[[_Grid, Operation], None]] = {
    **dict.fromkeys(
        ("detach", "alias", "clone", "contiguous", "lift_fresh", "expand", "view", "_unsafe_view"), _nothing
    ),
    "_to_copy": _cast,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "flip": _flip,
    "permute": _permute,
    "transpose": _transpose,
    "rot90": _rot90,
    "slice": _slice,
    "constant_pad_nd": _pad,
    "grid_sampler_3d": _grid_sample,
    "grid_sampler_2d": _grid_sample,
    **{f"upsample_nearest{n}d": _interpolate("nearest") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": _interpolate("nearest-exact") for n in (1, 2, 3)},
    "upsample_linear1d": _interpolate("linear"),
    "upsample_trilinear3d": _interpolate("trilinear"),
    "_adaptive_avg_pool3d": _interpolate("area"),
}
"""What MONAI's inverses do, by the names of PyTorch's operators."""
