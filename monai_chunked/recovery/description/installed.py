"""What belongs to an installed package or to Python itself, which a name and a version tell."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import FunctionType

__all__ = ["by_name", "full_name", "installed_version"]


PACKAGES = {"site-packages", "dist-packages"}


PYTHON = tuple(Path(sysconfig.get_paths()[kind]) for kind in ("stdlib", "platstdlib"))


def by_name(value: type | FunctionType, module: str | None) -> str | None:
    """Name and version of a function or class, if these tell all of it; ``None``: it is the user's."""
    version = installed_version(module)
    if version is None or installed_version(value.__module__) is None:
        return None  # a decorator of a package may have made it of a function of the user
    named: object = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        named = getattr(named, part, None)
    return f"{value.__module__}.{value.__qualname__} {version}" if named is value else None


def full_name(value: object) -> str:
    """The name of a function or class with its module."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def installed_version(module: str | None) -> str | None:
    """The version of the package that a module is part of, or of Python; ``None``: it is the user's own.

    >>> installed_version("collections.abc") == platform.python_version(), installed_version("__main__")
    (True, None)
    """
    if not module or module == "__main__":
        return None
    return _version(module) if module in sys.modules or module.partition(".")[0] in sys.modules else _unloaded(module)


def _unloaded(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    return (
        None if spec is None or not _is_installed(spec.origin) else _version_of(module.partition(".")[0], spec.origin)
    )


@cache
def _version(module: str) -> str | None:
    top = module.partition(".")[0]
    if top == "monai_chunked" or top in sys.builtin_module_names:
        return platform.python_version() if top != "monai_chunked" else sys.modules[top].__version__
    loaded = sys.modules.get(module) or sys.modules[top]
    paths = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", ())]
    spec = getattr(loaded, "__spec__", None)
    if getattr(spec, "origin", None) == "frozen":
        return platform.python_version()
    path = next((path for path in paths if path), None)
    return _version_of(top, path) if _is_installed(path) else None


def _is_installed(path: str | None) -> bool:
    if path is None:
        return False
    file = Path(path)
    return bool(PACKAGES & set(file.parts)) or any(file.is_relative_to(folder) for folder in PYTHON)


def _version_of(top: str, path: str | None) -> str:
    file = Path(path or "")
    if not PACKAGES & set(file.parts):
        return platform.python_version()
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(top, [])
    if names:
        return ", ".join(importlib.metadata.version(name) for name in sorted(set(names)))
    return hashlib.blake2b(file.read_bytes() if file.is_file() else b"", digest_size=16).hexdigest()
