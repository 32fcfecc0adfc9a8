"""What tasks give each other: anything, with the memory of its tensors sent as it lies there."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import torch

__all__ = ["Parcel", "opened"]


class Parcel:
    """A value whose tensors in CPU memory go to other processes without a copy.

    Tensors pickle themselves by way of a file in memory, with several copies. Arrays of NumPy are handed over beside
    the pickle, and Dask sends them from where they lie. Within a process nothing is pickled.

    Args:
        value: whatever cloudpickle can take.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __sizeof__(self) -> int:
        """What Dask takes it for: it runs tasks where most of what they need is, and knows how full a worker is."""
        return object.__sizeof__(self) + _size_of(self.value)

    def __reduce__(self) -> tuple[object, ...]:
        import cloudpickle

        class Pickler(cloudpickle.Pickler):
            def reducer_override(self, value: Any) -> Any:
                if _is_plain(value):
                    return _taken_apart(value)
                return super().reducer_override(value)

        file = io.BytesIO()
        buffers: list[pickle.PickleBuffer] = []
        Pickler(file, protocol=5, buffer_callback=buffers.append).dump(self.value)
        return _unpacked, (file.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])


def opened(value: Any) -> Any:
    """What is in a parcel; anything else as it is."""
    return value.value if isinstance(value, Parcel) else value


def _size_of(value: object) -> int:
    """Bytes of the tensors in lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_size_of, value)) if isinstance(value, (list, tuple)) else 0


def _unpacked(pickled: bytes, buffers: list[np.ndarray]) -> Parcel:
    return Parcel(pickle.loads(pickled, buffers=buffers))


def _is_plain(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
        return False
    return value.device.type == "cpu" and value.layout is torch.strided and not value.requires_grad and value.nbytes > 0


def _taken_apart(tensor: torch.Tensor) -> tuple[object, ...]:
    plain = tensor.as_subclass(torch.Tensor)
    if plain.untyped_storage().nbytes() > plain.nbytes:
        plain = plain.clone()  # a part of something larger
    memory = torch.empty(0, dtype=torch.uint8).set_(plain.untyped_storage()).numpy()
    how = (memory, plain.dtype, plain.storage_offset(), tuple(plain.shape), plain.stride())
    return _put_together, (*how, type(tensor), dict(tensor.__dict__))


def _put_together(
    memory: np.ndarray,
    dtype: torch.dtype,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    kind: type,
    state: dict[str, object],
) -> torch.Tensor:
    if not memory.flags.writeable:
        memory = memory.copy()
    tensor = torch.empty(0, dtype=dtype).set_(torch.from_numpy(memory).untyped_storage(), offset, shape, stride)
    if kind is not torch.Tensor:
        tensor = tensor.as_subclass(kind)
    tensor.__dict__.update(state)
    return tensor
