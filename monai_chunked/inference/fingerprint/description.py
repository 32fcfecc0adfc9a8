"""
Objects and code as a text that can be kept and compared: the same text, in this process and in others, for what
computes the same.

Objects are followed as pickle follows them, to all that they hold. Functions and classes of the user are known by their
code and by the values that it refers to; those of installed packages and of Python by name and version. What has no
value that could be compared, such as an open file, is said and never guessed.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib
import io
import pickletools
import re
import weakref
import zipfile
from collections.abc import Iterable, Iterator, Mapping
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
from monai.transforms import Compose, Randomizable

from monai_chunked.inference.fingerprint.arrays import DIGEST_BYTES, array_text, digest_of_tensor, sampled
from monai_chunked.inference.fingerprint.installed import by_name, installed_version

__all__ = ["Describer", "Undescribable", "sorted_metadata"]


ATOMS = (
    NoneType, bool, int, float, complex, str, bytes, range, EllipsisType, NotImplementedType,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


OF_THE_CLASS = (GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType)


NO_CODE = {
    "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__",
    "__type_params__", "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__",
}  # fmt: skip
"""Of a class: where it is written, and what follows from its methods."""


NO_STATE = {"dynunet.DynUNet": {"heads"}, "dynunet.DynUNetSkipLayer": {"heads"}}
"""Attributes of MONAI's networks that hold random numbers until the first window, and are never read before."""


VOUCHED = "vouched for"


LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


class Undescribable(Exception):
    """Something has no value that can be kept and compared.

    Args:
        path: where it is.
        what: it is.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}")


class Describer:
    """Describes the parts of one call.

    Args:
        vouched: the user vouches for what cannot be described.
    """

    def __init__(self, vouched: bool = False) -> None:
        self.vouched = vouched
        self.weights: dict[Any, str] = {}
        self._digests: dict[Any, tuple[torch.Tensor, str]] = {}
        self._numbers: dict[Any, int] = {}
        self._kept: list[Any] = []
        self._path: list[str] = []

    def text(self, value: Any, name: str) -> str:
        """Of a part that has a name.

        Raises:
            Undescribable: when something in it cannot be described, and the user does not vouch for it.
        """
        self._numbers, self._kept, self._path = {}, [], []
        try:
            return self.describe(value, name)
        except RecursionError:
            self._path = [name]
            return self.cannot(value, "is nested too deep")

    def array(self, value: Any, name: str) -> str:
        """Of an array ``(B, C, *spatial)``: of a kind that is not known it is not enough what it says of itself."""
        self._numbers, self._kept, self._path = {}, [], [name]
        try:
            text = array_text(value, self)
        except RecursionError:
            text, self._path = None, [name]
        text = self.cannot(value) if text is None else text
        return f"{text} {sampled(value)}" if VOUCHED in text else text

    def weights_text(self, state: Mapping[str, Any]) -> str:
        """Of a ``state_dict``; its tensors are known by their names in what is described afterwards."""
        text = self.text(dict(state), "network.state_dict()")
        self.weights = {_memory(v): k for k, v in state.items() if isinstance(v, torch.Tensor) and _has_memory(v)}
        return text

    def describe(self, value: Any, name: str = "") -> str:
        """Of a part of what is being described."""
        kind = type(value)
        if kind in ATOMS:
            return repr(value)
        self._path.append(name)
        try:
            if kind is tuple or kind is torch.Size:
                return f"({self._all(value)})"
            return self._described(value)
        finally:
            self._path.pop()

    def cannot(self, value: Any, why: str = "") -> str:
        """There is nothing to compare."""
        if self.vouched:
            return VOUCHED
        path = "".join(self._path).lstrip(".")
        raise Undescribable(path, f"{type(value)} {why}".strip())

    def _described(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        array = array_text(value, self)
        if array is not None:
            return array
        if isinstance(value, (np.dtype, np.generic)):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, CodeType):
            return self._code(value)
        if isinstance(value, slice):
            return f"slice({self._all((value.start, value.stop, value.step))})"
        if isinstance(value, (frozenset, set)) and type(value) in (frozenset, set):
            return self._set(value)
        if isinstance(value, MethodType):
            return f"method({self.describe(value.__func__)}, {self.describe(value.__self__, '.__self__')})"
        if isinstance(value, (BuiltinFunctionType, np.ufunc)):
            return self._builtin(value)
        if isinstance(value, OF_THE_CLASS):
            return f"{self.describe(value.__objclass__)}.{value.__name__}"
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__}({self.describe(value.__func__)})"
        if isinstance(value, property):
            return f"property({self._all((value.fget, value.fset, value.fdel))})"
        if isinstance(value, functools.cached_property):
            return f"cached_property({self.describe(value.func)})"
        if isinstance(value, weakref.ref):
            return f"ref({self.describe(value())})"
        return self._numbered(value, id(value), self._by_reference)

    def _numbered(self, value: Any, key: Any, of: Any, *more: Any) -> str:
        """By its number, if it has been described before or is being described."""
        if key in self._numbers:
            return f"#{self._numbers[key]}"
        self._numbers[key] = len(self._numbers)
        self._kept.append(value)  # so that nothing else gets its id
        return str(of(value, *more))

    def _by_reference(self, value: Any) -> str:
        if type(value) is list:
            return f"[{self._all(value)}]"
        if type(value) is dict or isinstance(value, MappingProxyType):
            return "{" + self._items(value.items()) + "}"
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            return self._module(value, None)
        if isinstance(value, Enum):
            return f"{self.describe(type(value))}.{value.name}={self.describe(value.value)}"
        if isinstance(value, torch.Generator):
            return f"generator({value.device}, {self.describe(value.get_state())})"
        if isinstance(value, torch.nn.Module):
            return self._network(value)
        if isinstance(value, functools.partial):
            held = {"func": value.func, "args": value.args, "keywords": value.keywords, "attributes": vars(value)}
            return f"{self.describe(type(value))}{self._state(held)}"
        if hasattr(value, "cache_parameters") and hasattr(value, "__wrapped__"):  # of functools.lru_cache
            return f"cached({self.describe(value.__wrapped__)})"
        return self._object(value)

    def _all(self, values: Iterable[Any]) -> str:
        return ", ".join(self.describe(value, f"[{k}]") for k, value in enumerate(values))

    def _items(self, items: Iterable[tuple[Any, Any]]) -> str:
        return ", ".join(f"{self.describe(k)}: {self.describe(v, f'.{k}')}" for k, v in items)

    def _set(self, values: Any) -> str:
        """Its order is of no account, so nothing in it may get a number that depends on the order."""
        numbers, texts = self._numbers, []
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

    def _builtin(self, value: Any) -> str:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, (ModuleType, type)):
            return f"{self.describe(owner, '.__self__')}.{value.__name__}"
        module = "numpy" if isinstance(value, np.ufunc) else value.__module__ or getattr(owner, "__name__", "builtins")
        version = installed_version(module)
        name = getattr(value, "__qualname__", value.__name__)
        if version is None or (isinstance(value, np.ufunc) and getattr(np, name, None) is not value):
            return self._object(value)
        return f"{module}.{name} {version}"

    def _function(self, function: FunctionType) -> str:
        known = by_name(function, function.__globals__.get("__name__"))
        if known is not None:
            return known
        if hasattr(function, "_torchdynamo_orig_callable"):
            return f"compiled({self.describe(function._torchdynamo_orig_callable)})"
        held = {
            "defaults": function.__defaults__,
            "keyword defaults": function.__kwdefaults__,
            "attributes": dict(vars(function)),
        }
        closure = zip(function.__code__.co_freevars, map(_content, function.__closure__ or ()))
        parts = [
            function.__qualname__,
            self._code(function.__code__),
            ", ".join(f"{k}: {self.describe(v, f'.{k}')}" for k, v in held.items()),
            ", ".join(f"{k}: {self.describe(v, f'.{k}')}" for k, v in closure),
            ", ".join(self._globals(function)),
        ]
        return f"function({'; '.join(parts)})"

    def _code(self, code: CodeType) -> str:
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        exceptions = getattr(code, "co_exceptiontable", b"")
        return f"code({code.co_code.hex()} {exceptions.hex()} {counts} {names} {self._all(code.co_consts)})"

    def _globals(self, function: FunctionType) -> Iterator[str]:
        """The values that code refers to by name."""
        codes = list(_codes(function.__code__))
        names = frozenset(name for code in codes for name in code.co_names)
        builtins: Any = function.__globals__.get("__builtins__", {})
        builtins = builtins if isinstance(builtins, dict) else vars(builtins)
        for code in codes:
            instructions = list(dis.get_instructions(code))
            loaded = dict.fromkeys(i.argval for i in instructions if i.opname in LOADS)
            for name in loaded:
                if name in function.__globals__:
                    yield f"{name}: {self._global(function.__globals__[name], name, names)}"
                elif name in builtins:
                    yield f"{name}: {self.describe(builtins[name], f'.{name}')}"
                else:
                    yield f"{name}: nothing"
            for k, instruction in enumerate(instructions):
                if instruction.opname == "IMPORT_NAME":
                    package = function.__globals__.get("__package__")
                    yield self._imported(instruction.argval, instructions[k - 2].argval, package, names)

    def _global(self, value: Any, name: str, names: frozenset[str]) -> str:
        if not isinstance(value, ModuleType):
            return self.describe(value, f".{name}")
        self._path.append(f".{name}")
        try:
            return self._numbered(value, (id(value), names), self._module, names)
        finally:
            self._path.pop()

    def _imported(self, name: str, level: int, package: str | None, names: frozenset[str]) -> str:
        absolute = "." * level + name
        if (version := installed_version(name)) and not level:
            return f"{name}: module {name} {version}"
        try:
            return f"{absolute}: {self._global(importlib.import_module(absolute, package), name, names)}"
        except ImportError:
            return f"{absolute}: nothing"

    def _module(self, module: ModuleType, names: frozenset[str] | None) -> str:
        """Of the user's: the attributes with these names, all of them if that is not known."""
        version = installed_version(module.__name__)
        if version is not None:
            return f"module {module.__name__} {version}"
        held = {k: v for k, v in vars(module).items() if (k in names if names else not k.startswith("__"))}
        if names is None:
            return f"module {module.__name__} {{{self._items(held.items())}}}"
        texts = [f"{k}: {self._global(held[k], k, names)}" for k in sorted(held)]
        return f"module {module.__name__} {{{', '.join(texts)}}}"

    def _class(self, cls: type) -> str:
        known = by_name(cls, cls.__module__)
        if known is not None:
            return known
        held = [
            f"{k}: {self.describe(v, f'.{k}')}"
            for k, v in sorted(vars(cls).items())
            if k not in NO_CODE and not isinstance(v, (GetSetDescriptorType, MemberDescriptorType))
        ]
        bases = self._all(cls.__bases__)
        return f"class {cls.__qualname__}({bases}; {self.describe(type(cls))}; {', '.join(held)})"

    def _network(self, module: torch.nn.Module) -> str:
        if isinstance(module, torch.jit.ScriptModule):
            return _scripted(module)
        if isinstance(module, torch._dynamo.OptimizedModule):
            options = getattr(module.dynamo_ctx, "compiler_config", None) or {}
            numbers = {
                key: held for key, held in options.items() if type(held) in (bool, int, float)
            }  # others are paths
            return f"compiled({self.describe(module._orig_mod)}, {self.describe(numbers)})"
        state: Any = module.__getstate__()
        if isinstance(state, dict):
            ignored = {name for cls, names in NO_STATE.items() if _path(type(module)).endswith(cls) for name in names}
            held = {k: v for k, v in state.items() if k not in ignored and not _of_state_dict(k)}
            state = _without_ids_of_hooks(held)
        compiled = "compiled " if getattr(module, "_compiled_call_impl", None) else ""
        kind = self.describe(type(module))
        return f"{compiled}{kind}.{self.describe(type(module).forward, '.forward')}{self._state(state)}"

    def _object(self, value: Any) -> str:
        """As pickle sees it."""
        kind = type(value)
        try:
            reduced: Any = copyreg.dispatch_table.get(kind, lambda each: each.__reduce_ex__(4))(value)
        except Exception:  # any type may raise anything here
            return self.cannot(value)
        if isinstance(reduced, str):
            version = installed_version(getattr(value, "__module__", None) or kind.__module__)
            return self.cannot(value) if version is None else f"{_path(value)}{reduced} {version}"
        function, arguments, *rest = reduced
        state, in_list, in_dict = (*rest, None, None, None)[:3]
        if kind is Compose:  # draws no numbers itself, and is seeded by chance
            state = {key: held for key, held in state.items() if key != "R"}
        parts = [self.describe(kind), self.describe(function), self._all(arguments), self._state(state)]
        if in_list is not None:
            parts.append(f"[{self._all(in_list)}]")
        if in_dict is not None:
            parts.append("{" + self._items(in_dict) + "}")
        if isinstance(value, Randomizable) and kind is not Compose:
            parts.append(self.describe(value.R, ".R"))
        return f"object({', '.join(parts)})"

    def _state(self, state: Any) -> str:
        """Attributes, with their names in messages."""
        if isinstance(state, dict):
            return "{" + self._items(state.items()) + "}"
        if isinstance(state, tuple) and len(state) == 2 and all(isinstance(s, (dict, NoneType)) for s in state):
            return f"({self._state(state[0])}, {self._state(state[1])})"
        return self.describe(state)


def sorted_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """MONAI collects it from sets, whose order is another one in every process."""
    return {str(key): value for key, value in sorted(metadata.items(), key=lambda item: str(item[0]))}


def _memory(tensor: torch.Tensor) -> Any:
    """The same for tensors over the same memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.numel() > 0 and tensor.data_ptr() != 0


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return NotImplemented


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _path(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _of_state_dict(name: str) -> bool:
    """Whether it is a hook that predictions do not depend on."""
    return name.startswith(("_state_dict_", "_load_state_dict_"))


def _without_ids_of_hooks(state: Mapping[str, Any]) -> dict[str, Any]:
    """Hooks are numbered throughout the process; what counts is their order."""
    hooks = {k for k in state if "_hooks" in k and isinstance(state[k], dict)}
    ids = sorted({number for k in hooks for number in state[k]})
    renamed = {number: position for position, number in enumerate(ids)}
    return {k: {renamed[n]: v for n, v in each.items()} if k in hooks else each for k, each in state.items()}


def _scripted(module: torch.jit.ScriptModule) -> str:
    """By what would be saved, without the parts of names that tell how many modules the process has made."""

    def plain(text: str) -> str:
        return re.sub(r"[./]?___torch_mangle_\d+", "", text)

    def place(name: str) -> tuple[str, list[int]]:
        return plain(name), [int(number) for number in re.findall(r"mangle_(\d+)", name)]

    memory, digest = io.BytesIO(), hashlib.blake2b(digest_size=DIGEST_BYTES)
    torch.jit.save(module, memory)
    with zipfile.ZipFile(memory) as archive:
        for name in sorted(archive.namelist(), key=place):
            data, inside = archive.read(name), plain(name.partition("/")[2])
            if inside.endswith(".py"):
                data = plain(data.decode()).encode()
            elif inside.endswith(".pkl"):
                steps = (f"{step.name} {plain(str(argument))}" for step, argument, _ in pickletools.genops(data))
                data = "\n".join(steps).encode()
            if not inside.endswith((".debug_pkl", "serialization_id")):
                digest.update(f"{inside} {len(data)}".encode() + data)
    return f"scripted {digest.hexdigest()}"
