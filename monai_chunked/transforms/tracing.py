"""
What MONAI's own inverse does to a volume, found out without a volume.

MONAI's transforms are called with a tensor that has the right shape and one voxel of memory. Whatever they do to it is
noted and not done. So what is undone, in which order, with which numbers, and which metadata is left at the end, is
said by MONAI, whatever its version.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, InvertibleTransform
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from monai_chunked.resampling.axes import Unstreamable

__all__ = ["Operation", "Trace", "trace"]


MUCH = 2**16
"""Elements of a tensor that the transforms make beside the volume; more are taken for a volume of coordinates."""


AFFINE_GRID = "affine_grid_generator"


@dataclass(frozen=True)
class Operation:
    """What is done once to the volume.

    Attributes:
        name: of the operator, without its namespace.
        args: its arguments, without the volume.
        shape: of the volume afterwards, with the dimensions in front of the spatial ones.
        dtype: of the volume afterwards.
        by: the transform that does it, for messages.
    """

    name: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    by: str


@dataclass(frozen=True)
class Trace:
    """What was done.

    Attributes:
        shape: of the volume before, ``(C, *spatial)``.
        operations: first to last.
        result: a tensor without memory, ``(C, *spatial)``, with the metadata that is left.
        strides: that the result has in the next transform, where the volume has memory; in voxels.
    """

    shape: tuple[int, ...]
    operations: tuple[Operation, ...]
    result: MetaTensor
    strides: tuple[int, ...]


def trace(volume: torch.Tensor, function: Callable[[MetaTensor], object]) -> Trace:
    """Call a function with a volume that is not there.

    Args:
        volume: shape ``(C, *spatial)``, dtype and strides; on PyTorch's device ``meta``.
        function: takes a ``MetaTensor`` and returns one.

    Raises:
        Unstreamable: when it does what cannot be followed.
    """
    recorder = _Recorder()
    followed = recorder.volume(volume)
    try:
        with torch.no_grad(), recorder:
            result = function(MetaTensor(followed))
    except RuntimeError as error:  # MONAI tells what went wrong in a transform with an error of its own
        if (reason := _reason(error)) is not None:
            raise reason from error
        raise
    if not isinstance(result, MetaTensor) or not recorder.knows(result):
        raise Unstreamable("its result does not come from the prediction by operations of PyTorch")
    left = recorder.like(result).to(memory_format=torch.contiguous_format)  # as the next transform asks for it
    return Trace(tuple(volume.shape), tuple(recorder.operations), result, left.stride())


class _Recorder(TorchDispatchMode):
    """
    Notes what is done to volumes that take no memory: views of a single voxel, known by where that is.

    Each has a twin on the device ``meta``, which knows the strides that a volume with memory would have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._volumes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._grids: dict[int, tuple[torch.Tensor, torch.Tensor, tuple[int, ...], bool]] = {}

    def volume(self, like: torch.Tensor) -> torch.Tensor:
        volume = torch.zeros(1, dtype=like.dtype).expand(like.shape)
        self._volumes[_place(volume)] = volume, like
        return volume

    def like(self, volume: torch.Tensor) -> torch.Tensor:
        """The twin of a volume."""
        return self._volumes[_place(volume)][1]

    def knows(self, tensor: torch.Tensor) -> bool:
        return _place(tensor) in self._volumes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch need not keep its compiler away from this mode: importing it takes longer than all that is traced."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == AFFINE_GRID:
            theta, size, align_corners = args
            grid = torch.zeros(1, dtype=theta.dtype).expand((size[0], *size[2:], len(size) - 2))
            self._grids[_place(grid)] = (grid, theta.clone(), tuple(size[2:]), align_corners)
            return grid
        if not any(self.knows(tensor) for tensor in tensors):
            if any(_place(tensor) in self._grids for tensor in tensors):
                raise Unstreamable(f"{_transform()} changes the grid of coordinates ({name})")
            result = func(*args, **kwargs)
            if any(isinstance(leaf, torch.Tensor) and leaf.numel() > MUCH for leaf in tree_leaves(result)):
                raise Unstreamable(f"{_transform()} makes a volume of coordinates ({name})")
            return result
        return self._note(name, func, args, kwargs)

    def _note(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        if name == "_local_scalar_dense":
            raise Unstreamable(f"{_transform()} looks at single voxels")
        without_memory = tree_map(self._on_meta, (args, {k: v for k, v in kwargs.items() if k != "device"}))
        like = func(*without_memory[0], **without_memory[1])
        if not isinstance(like, torch.Tensor) or name.endswith("_"):
            raise Unstreamable(f"{_transform()} uses an operation that cannot be followed ({name})")
        others = tuple(self._argument(a) for a in args if not (isinstance(a, torch.Tensor) and self.knows(a)))
        self.operations.append(Operation(name, others, tuple(like.shape), like.dtype, _transform()))
        return self.volume(like)

    def _on_meta(self, value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        return self.like(value) if self.knows(value) else value.to("meta")

    def _argument(self, value: object) -> object:
        return self._grids.get(_place(value), value) if isinstance(value, torch.Tensor) else value


def _reason(error: BaseException | None) -> Unstreamable | None:
    while error is not None and not isinstance(error, Unstreamable):
        error = error.__cause__
    return error


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _transform() -> str:
    """The transform of MONAI that is at work."""
    frame: FrameType | None = sys._getframe()
    name = "it"  # post_func of Invertd, or what else is called behind the transforms
    while frame is not None:
        owner = frame.f_locals.get("self")
        if (
            frame.f_code.co_name == "inverse"
            and isinstance(owner, InvertibleTransform)
            and not isinstance(owner, Compose)
        ):
            name = f"the inverse of {type(owner).__name__}"
        frame = frame.f_back
    return name
