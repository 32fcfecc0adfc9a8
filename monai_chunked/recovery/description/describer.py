"""
Values of any kind as a text that can be kept and compared: the same text, in this process and in others, for what
computes the same.

Arrays, code, networks and objects have modules of their own, which describe them. What has no value that could be
compared, such as an open file, is named and never guessed.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
    NotImplementedType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.recovery.description.arrays import array_text, digest_of_tensor, sampled
from monai_chunked.recovery.description.code import builtin_text, class_text, code_text, function_text, module_text
from monai_chunked.recovery.description.networks import network_text
from monai_chunked.recovery.description.objects import object_text
from monai_chunked.recovery.description.protocol import Undescribable
from monai_chunked.recovery.differences import Details, detail

__all__ = ["Describer", "Undescribable", "sorted_metadata"]


ATOMS = (
    NoneType, bool, int, float, complex, str, bytes, range, EllipsisType, NotImplementedType,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


DEVICE = re.compile(r"(cpu|cuda|hip|hpu|ipu|mps|mtia|npu|privateuseone|vulkan|xla|xpu):\d+")
"""The name of one of several devices of a type."""


REFERENCE = re.compile(r"#\d+")
"""The text of something that has been described before."""


OF_THE_CLASS = (GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType)


VOUCHED = "vouched for"


class Describer:
    """Describes the parts of one call.

    Args:
        vouched: the user vouches for what cannot be described.

    Attributes:
        details: of the last text, so that a difference can be told with its path.
    """

    def __init__(self, vouched: bool = False) -> None:
        self.vouched = vouched
        self.weights: dict[Hashable, str] = {}
        self._digests: dict[Hashable, tuple[torch.Tensor, str]] = {}
        self._numbers: dict[Hashable, int] = {}
        self._kept: list[object] = []
        self._path: list[str] = []
        self.details: Details = {}
        self._inside: Details | None = {}

    def text(self, value: Any, name: str) -> str:
        """The text of a part that has a name.

        Raises:
            Undescribable: when something in it cannot be described, and the user does not vouch for it.
        """
        self._numbers, self._kept, self._path = {}, [], [name]
        self.details = self._inside = {}
        try:
            return self.describe(value)
        except RecursionError:
            self._path, self._inside = [name], {}
            return self.cannot(value, "is nested too deep")
        finally:
            self._path = []

    def voxels(self, value: Any, name: str) -> str:
        """The text of a tensor or array ``(B, C, *spatial)``. An array must be of a kind that is known.

        Raises:
            Undescribable: when it cannot be described, and the user does not vouch for it.
        """
        if isinstance(value, torch.Tensor):
            return self.text(value, name)
        self._numbers, self._kept, self._path = {}, [], [name]
        self.details, self._inside = {}, None
        try:
            text = array_text(value, self)
        except RecursionError:
            text, self._path = None, [name]
        text = self.cannot(value) if text is None else text
        return f"{text} {sampled(value)}" if VOUCHED in text else text

    def weights_text(self, state: Mapping[str, Any]) -> str:
        """The text of a ``state_dict``; what is described afterwards calls its tensors by their names."""
        text = self.text(dict(state), "network.state_dict()")
        self.details = {}  # there are many, and whoever changes one changes all
        self.weights = {_memory(t): name for name, t in state.items() if isinstance(t, torch.Tensor) and _has_memory(t)}
        return text

    def describe(self, value: Any, name: str = "") -> str:
        """The text of a part of what is being described."""
        kind = type(value)
        if kind in ATOMS:
            text = _atom_text(value)
            if name and self._inside is not None:
                self._inside[name] = detail(text, {})
            return text
        with self._at(name) as keep:
            return keep(f"({self.each(value)})" if kind is tuple or kind is torch.Size else self._described(value))

    def kind(self, cls: type, name: str = "") -> str:
        """The text of the class of an object that exists, so that how it makes objects does not count."""
        return self.once(cls, (id(cls), "kind"), functools.partial(class_text, cls, self, made=True), name)

    def cannot(self, value: Any, why: str = "") -> str:
        """What is said of a value that cannot be compared; raises unless the user vouches for it."""
        if self.vouched:
            return VOUCHED
        path = "".join(self._path).lstrip(".")
        raise Undescribable(path, f"{type(value)} {why}".strip())

    def each(self, values: Iterable[Any]) -> str:
        """The texts of values that have no names."""
        return ", ".join(self.describe(value, f"[{k}]") for k, value in enumerate(values))

    def items(self, items: Iterable[tuple[Any, Any]]) -> str:
        """The texts of values and of their names."""
        return ", ".join(f"{self.describe(key)}: {self.describe(value, f'.{key}')}" for key, value in items)

    def state(self, state: Any) -> str:
        """The text of attributes, with their names in messages."""
        if isinstance(state, dict):
            return "{" + self.items(state.items()) + "}"
        if isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, (dict, NoneType)) for part in state):
            return f"({self.state(state[0])}, {self.state(state[1])})"
        return self.describe(state)

    def once(self, value: Any, key: Hashable, of: Callable[[], str], name: str = "") -> str:
        """What ``of`` gives, or a number if the value with this key has been described before or is being described."""
        if key in self._numbers:
            return f"#{self._numbers[key]}"
        self._numbers[key] = len(self._numbers)
        self._kept.append(value)  # so that nothing else gets its id
        with self._at(name) as keep:
            return keep(of())

    @contextmanager
    def _at(self, name: str) -> Iterator[Callable[[str], str]]:
        """Collect details of a part with this name; yields what keeps the text of the part."""
        above = self._inside
        if name and above is not None:
            self._inside = {}

        def keep(text: str) -> str:
            if name and above is not None and not REFERENCE.fullmatch(text):
                above[name] = detail(text, self._inside or {})
            return text

        self._path.append(name)
        try:
            yield keep
        finally:
            self._path.pop()
            self._inside = above

    def _described(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        array = array_text(value, self)
        if array is not None:
            return array
        if isinstance(value, (np.dtype, np.generic)):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, CodeType):
            self._inside = None  # a constant has no name that means anything
            return code_text(value, self)
        if isinstance(value, slice):
            return f"slice({self.each((value.start, value.stop, value.step))})"
        if isinstance(value, (frozenset, set)) and type(value) in (frozenset, set):
            return self._set(value)
        if isinstance(value, MethodType):
            return f"method({self.describe(value.__func__)}, {self.describe(value.__self__, '.__self__')})"
        if isinstance(value, (BuiltinFunctionType, np.ufunc)):
            return builtin_text(value, self)
        if isinstance(value, OF_THE_CLASS):
            return f"{self.describe(value.__objclass__)}.{value.__name__}"
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__}({self.describe(value.__func__)})"
        if isinstance(value, property):
            return f"property({self.each((value.fget, value.fset, value.fdel))})"
        if isinstance(value, functools.cached_property):
            return f"cached_property({self.describe(value.func)})"
        if isinstance(value, weakref.ref):
            return f"ref({self.describe(value())})"
        return self.once(value, id(value), functools.partial(self._by_reference, value))

    def _by_reference(self, value: Any) -> str:
        """The text of a value that may hold itself."""
        if type(value) is list:
            return f"[{self.each(value)}]"
        if type(value) is dict or isinstance(value, MappingProxyType):
            return "{" + self.items(value.items()) + "}"
        if isinstance(value, FunctionType):
            return function_text(value, self)
        if isinstance(value, type):
            return class_text(value, self)
        if isinstance(value, ModuleType):
            return module_text(value, self)
        if isinstance(value, Enum):
            return f"{self.kind(type(value))}.{value.name}={self.describe(value.value)}"
        if isinstance(value, torch.Generator):
            return f"generator({value.device.type}, {self.describe(value.get_state())})"
        if isinstance(value, torch.nn.Module):
            return network_text(value, self)
        if isinstance(value, functools.partial):
            held = {"func": value.func, "args": value.args, "keywords": value.keywords, "attributes": vars(value)}
            return f"{self.describe(type(value))}{self.state(held)}"
        if hasattr(value, "cache_parameters") and hasattr(value, "__wrapped__"):  # of functools.lru_cache
            return f"cached({self.describe(value.__wrapped__)})"
        return object_text(value, self)

    def _set(self, values: set[Any] | frozenset[Any]) -> str:
        """The order of a set does not count, so nothing in it may get a number that depends on the order."""
        numbers, texts, self._inside = self._numbers, [], None
        for value in values:
            self._numbers = dict(numbers)
            texts.append(self.describe(value, "{...}"))
        self._numbers = numbers
        return f"{type(values).__name__}{{{', '.join(sorted(texts))}}}"

    def _tensor(self, tensor: torch.Tensor) -> str:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            return self.cannot(tensor, f"of {tensor.layout} on {tensor.device}")
        key = _memory(tensor)
        if _has_memory(tensor) and key in self.weights:
            return f"weights {self.weights[key]}"
        if key not in self._digests or not _has_memory(tensor):
            self._digests[key] = tensor, digest_of_tensor(tensor)
        digest = self._digests[key][1]
        if isinstance(tensor, MetaTensor):
            return f"{digest} {self.describe(sorted_metadata(tensor.meta), '.meta')}"
        return digest


def _atom_text(value: Any) -> str:
    """Without the number of a device: those of a type compute the same, and each process may have its own."""
    if type(value) is torch.device:
        return f"device(type={value.type!r})"
    if type(value) is str and DEVICE.fullmatch(value):
        return repr(value.partition(":")[0])
    return repr(value)


def sorted_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Metadata in order: MONAI collects it from sets, whose order is another one in every process."""
    return {str(key): value for key, value in sorted(metadata.items(), key=lambda item: str(item[0]))}


def _memory(tensor: torch.Tensor) -> Hashable:
    """The same for tensors over the same memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.numel() > 0 and tensor.data_ptr() != 0
