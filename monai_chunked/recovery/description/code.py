"""
Functions, classes and modules as a text that can be kept and compared.

Those of the user are described by their code and the values that it refers to, those of installed packages and of
Python by name and version.
"""

from __future__ import annotations

import dis
import importlib
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

import numpy as np

from monai_chunked.recovery.description.installed import by_name, installed_version
from monai_chunked.recovery.description.objects import object_text
from monai_chunked.recovery.description.protocol import Describes

__all__ = ["builtin_text", "class_text", "code_text", "function_text", "module_text"]


NO_CODE = {
    "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__",
    "__type_params__", "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__",
}  # fmt: skip
"""Attributes of a class that say where it is written, or follow from its methods."""


MAKING = {"__new__", "__init__", "__post_init__", "__init_subclass__", "__set_name__"}
"""Methods that have run already if an object of the class exists."""


MAKES = {"__init__", "__class__", "type"}
"""Names by which methods may make objects of their own class."""


LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


def code_text(code: CodeType, describer: Describes) -> str:
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    exceptions = getattr(code, "co_exceptiontable", b"")
    return f"code({code.co_code.hex()} {exceptions.hex()} {counts} {names} {describer.each(code.co_consts)})"


def function_text(function: FunctionType, describer: Describes) -> str:
    named = by_name(function, function.__globals__.get("__name__"))
    if named is not None:
        return named
    if hasattr(function, "_torchdynamo_orig_callable"):
        return f"compiled({describer.describe(function._torchdynamo_orig_callable)})"
    held = {
        "defaults": function.__defaults__,
        "keyword defaults": function.__kwdefaults__,
        "attributes": dict(vars(function)),
    }
    closure = zip(function.__code__.co_freevars, map(_content, function.__closure__ or ()))
    parts = [
        function.__qualname__,
        describer.describe(function.__code__, " (its code)"),
        ", ".join(f"{name}: {describer.describe(value, f'.{name}')}" for name, value in held.items()),
        ", ".join(_closed_over(name, value, describer) for name, value in closure),
        ", ".join(_globals(function, describer)),
    ]
    return f"function({'; '.join(parts)})"


def _closed_over(name: str, value: Any, describer: Describes) -> str:
    # the class that super() uses, of an object that exists
    of = describer.kind if name == "__class__" and isinstance(value, type) else describer.describe
    return f"{name}: {of(value, f'.{name}')}"


def class_text(cls: type, describer: Describes, made: bool = False) -> str:
    """The text of a class: all that it has, or name and version if it is not the user's.

    Args:
        cls: the class.
        describer: describes what it has.
        made: an object of the class exists.
    """
    named = by_name(cls, cls.__module__)
    if named is not None:
        return named
    held = [
        f"{name}: {describer.describe(value, f'.{name}')}"
        for name, value in sorted(vars(cls).items())
        if name not in (NO_CODE | MAKING if made and not _makes_more(cls) else NO_CODE)
        if not isinstance(value, (GetSetDescriptorType, MemberDescriptorType))
    ]
    of = describer.kind if made else describer.describe
    bases = ", ".join(of(base, f"({base.__qualname__})") for base in cls.__bases__)
    return f"class {cls.__qualname__}({bases}; {describer.describe(type(cls))}; {', '.join(held)})"


def module_text(module: ModuleType, describer: Describes, names: frozenset[str] | None = None) -> str:
    """The text of a module of the user: its attributes with these names, or all if names are not known."""
    version = installed_version(module.__name__)
    if version is not None:
        return f"module {module.__name__} {version}"
    held = {key: value for key, value in vars(module).items() if (key in names if names else not key.startswith("__"))}
    if names is None:
        return f"module {module.__name__} {{{describer.items(held.items())}}}"
    texts = [f"{key}: {_global(held[key], key, names, describer)}" for key in sorted(held)]
    return f"module {module.__name__} {{{', '.join(texts)}}}"


def _makes_more(cls: type) -> bool:
    """Whether a method of a class may make other objects of it."""
    methods = [
        getattr(value, "__func__", value)
        for base in cls.__mro__
        if installed_version(base.__module__) is None
        for name, value in vars(base).items()
        if not name.startswith("__") or name == "__call__"  # others ask for names, and compare
    ]
    return any(
        not MAKES.isdisjoint(code.co_names)
        for method in methods
        if isinstance(method, FunctionType)
        for code in _codes(method.__code__)
    )


def builtin_text(value: Any, describer: Describes) -> str:
    """The text of a function that is not written in Python, or of a ufunc."""
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, (ModuleType, type)):
        return f"{describer.describe(owner, '.__self__')}.{value.__name__}"
    module = "numpy" if isinstance(value, np.ufunc) else value.__module__ or getattr(owner, "__name__", "builtins")
    version = installed_version(module)
    name = getattr(value, "__qualname__", value.__name__)
    if version is None or (isinstance(value, np.ufunc) and getattr(np, name, None) is not value):
        return object_text(value, describer)
    return f"{module}.{name} {version}"


def _globals(function: FunctionType, describer: Describes) -> Iterator[str]:
    """The texts of the values that code refers to by name."""
    codes = list(_codes(function.__code__))
    names = frozenset(name for code in codes for name in code.co_names)
    builtins: Any = function.__globals__.get("__builtins__", {})
    builtins = builtins if isinstance(builtins, dict) else vars(builtins)
    for code in codes:
        instructions = list(dis.get_instructions(code))
        for name in dict.fromkeys(step.argval for step in instructions if step.opname in LOADS):
            if name in function.__globals__:
                yield f"{name}: {_global(function.__globals__[name], name, names, describer)}"
            elif name in builtins:
                yield f"{name}: {describer.describe(builtins[name], f'.{name}')}"
            else:
                yield f"{name}: nothing"
        for k, instruction in enumerate(instructions):
            if instruction.opname == "IMPORT_NAME":
                package = function.__globals__.get("__package__")
                module = "." * instructions[k - 2].argval + instruction.argval
                yield _imported(module, package, names, describer)


def _global(value: Any, name: str, names: frozenset[str], describer: Describes) -> str:
    if not isinstance(value, ModuleType):
        return describer.describe(value, f".{name}")
    return describer.once(value, (id(value), names), partial(module_text, value, describer, names), f".{name}")


def _imported(name: str, package: str | None, names: frozenset[str], describer: Describes) -> str:
    if not name.startswith(".") and (version := installed_version(name)):
        return f"{name}: module {name} {version}"
    try:
        return f"{name}: {_global(importlib.import_module(name, package), name.lstrip('.'), names, describer)}"
    except ImportError:
        return f"{name}: nothing"


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return NotImplemented


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
