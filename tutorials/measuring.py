"""
Cells of a notebook that run in a process of their own, so that time and memory are theirs alone.

    %load_ext tutorials.measuring

A cell that begins with `%%shared` runs here, and first of all in each measured cell. A cell that begins with
`%%measured NAME [VARIABLE ...]` runs in a fresh process; its time, its peak of memory and the variables come back.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MEASURED", "Measured", "load_ipython_extension"]

SCRIPT = """
import sys, time
from pathlib import Path

shared, cell, returned, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
there = {"__name__": "__main__"}
exec(compile(shared.read_text(), "shared cells", "exec"), there)
kibibytes = lambda key: int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
held, start = kibibytes("VmRSS"), time.perf_counter()
exec(compile(cell.read_text(), "measured cell", "exec"), there)
seconds, peak = time.perf_counter() - start, kibibytes("VmHWM")
import torch
torch.save((seconds, 1024 * (peak - held), {name: there[name] for name in names}), returned)
"""


@dataclass(frozen=True)
class Measured:
    """What a cell took: seconds, and bytes at the peak over what its process held when it began."""

    seconds: float
    peak_bytes: int


MEASURED: dict[str, Measured] = {}
"""What each measured cell took, by its name."""


def run(shared: str, cell: str, names: list[str]) -> tuple[Measured, dict[str, Any]]:
    """Run a cell in a fresh process behind the shared cells.

    Args:
        shared: source of the shared cells.
        cell: source of the measured cell.
        names: of variables that come back.

    Raises:
        RuntimeError: when it fails, with what it printed.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("shared.py", "cell.py", "returned.pt")]
        paths[0].write_text(shared)
        paths[1].write_text(cell)
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, paths), *names], capture_output=True, text=True
        )
        print(process.stdout, end="")
        if process.returncode:
            raise RuntimeError(process.stderr)
        seconds, peak, variables = torch.load(paths[2], weights_only=False)
    return Measured(seconds, peak), variables


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext`."""
    shared: list[str] = []

    def share(line: str, cell: str) -> None:
        shared.append(cell)
        shell.run_cell(cell).raise_error()

    def measure(line: str, cell: str) -> None:
        name, *names = line.split()
        measured, variables = run("\n".join(shared), cell, names)
        MEASURED[name] = measured
        shell.push(variables)
        print(f"{name}: {measured.seconds:.1f} s, {measured.peak_bytes / 2**20:.0f} MiB over the start")

    shell.register_magic_function(share, "cell", "shared")
    shell.register_magic_function(measure, "cell", "measured")
