"""``exec``: a program that nobody edits, run as Python runs it, with MONAI's sliding window inference in chunks."""

from __future__ import annotations

import argparse
import atexit
import builtins
import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from zipfile import is_zipfile

from monai_chunked.api.patching import Patch, patch

__all__ = ["NoProgram", "add_exec", "path_of", "run_program"]


class NoProgram(ValueError):
    """There is nothing to run."""


def add_exec(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of a command line.

    Args:
        commands: what ``add_subparsers`` returns.
    """
    text = "run a Python program as it is, with MONAI's sliding window inference in chunks"
    usage = "python -m monai_chunked exec [--quiet] (program | -m module) [arguments ...]"
    execute = commands.add_parser("exec", help=text, description=text, usage=usage, allow_abbrev=False)
    execute.set_defaults(run=_exec, told=(NoProgram,))
    execute.add_argument("--quiet", action="store_true", help="do not say at the end what ran in chunks")
    execute.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="a module, as in python -m")
    execute.add_argument("program", nargs=argparse.REMAINDER, help="a file, a folder with __main__.py, or a command")


def _exec(options: argparse.Namespace) -> int:
    is_module = options.module is not None
    name, *arguments = options.module or options.program or [""]
    path = name if is_module and name else path_of(name)
    patched = patch()
    if not options.quiet:
        atexit.register(_say, patched, os.getpid())  # behind what the program does at its end
    run_program(path, arguments, is_module)
    return 0


def _say(patched: Patch, process: int) -> None:
    if os.getpid() == process:  # not once more in one that was forked
        for line in patched.summary().splitlines():
            print(f"monai_chunked: {line}", file=sys.stderr)


def path_of(name: str) -> str:
    """The path of a program: a file, a folder, or a command that is written in Python.

    Raises:
        NoProgram: when there is none.
    """
    if not name:
        raise NoProgram("exec needs a program, as in: python -m monai_chunked exec program.py, or exec -m module")
    if os.path.exists(name):
        return name
    path = shutil.which(name)
    if path is None:
        raise NoProgram(f"exec {name}: there is no such file, folder or command; a module is run by exec -m {name}")
    with open(path, "rb") as file:
        is_python = b"python" in file.readline()
    if not is_python and not is_zipfile(path):  # as commands are on Windows
        raise NoProgram(f"exec {name}: {path} is not written in Python; name the program or the module that it starts")
    return path


def run_program(name: str, arguments: Sequence[str], is_module: bool) -> None:
    """Run a program in this process, as ``python`` with these arguments does: its exit and its errors are its own.

    Args:
        name: of a module, or the path of a file or folder.
        arguments: of the program.
        is_module: whether it is a module.
    """
    sys.argv = [name, *arguments]
    if is_module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    path = Path(name).resolve()
    is_script = path.is_file() and not is_zipfile(path)
    if not getattr(sys.flags, "safe_path", False):  # from Python 3.11 on
        sys.path[0] = str(path.parent if is_script else path)
    if is_script:
        _run_script(os.path.abspath(name))
    else:
        runpy.run_path(name, run_name="__main__")


def _run_script(path: str) -> None:
    """Run it as Python does, with an absolute ``__file__``, in a ``__main__`` that lives until Python exits."""
    loader = SourceFileLoader("__main__", path)
    code = compile(loader.get_data(path), path, "exec", dont_inherit=True)
    module = ModuleType("__main__")
    vars(module).update(__file__=path, __loader__=loader, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    exec(code, vars(module))
