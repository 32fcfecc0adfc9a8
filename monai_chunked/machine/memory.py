"""How much memory a device has free, what says that there is none, and giving back what has been freed."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from monai_chunked.machine.accelerator import free_memory

__all__ = ["FreedMemory", "addresses_limited", "available_memory", "is_refusal"]

LOOK_BYTES = 2**20
"""How much memory the process holds is looked at again when so many bytes have come and gone."""

LEAST_FREED = 2**22
"""What is not worth giving back, in bytes."""


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device without swapping; ``None`` where that cannot be told.

    On a CPU it is what the operating system calls available, or what the limit of the container leaves if that is less.
    On an accelerator, what the driver has free and what PyTorch holds in reserve.
    """
    if device.type != "cpu":
        return free_memory(device)
    known = [size for size in (_operating_system(), _container()) if size is not None]
    return min(known, default=None)


def _operating_system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the memory limit of this control group (version 2, else version 1) leaves; its page cache can be freed."""
    for limit, usage, cache in (
        (root / "memory.max", root / "memory.current", "inactive_file"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = limit.read_text().strip()
            if most == "max":
                return None
            statistics = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
            return max(int(most) - int(usage.read_text()) + int(statistics.get(cache, 0)), 0)
        except (OSError, ValueError):
            continue
    return None


def addresses_limited() -> bool:
    """Whether addresses are limited like memory, as by ``ulimit -v``, so that none may be taken without need."""
    strict = Path("/proc/sys/vm/overcommit_memory")
    if strict.exists() and strict.read_text().strip() == "2":
        return True
    try:
        import resource  # not on Windows
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that memory cannot be allocated; PyTorch has a type of its own for accelerators only."""
    words = ("can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)


class FreedMemory:
    """Gives the operating system back what has been freed, where the C library keeps it.

    The heap of glibc does. A freed prediction leaves a hole, something small that lives on is put into it, the next
    prediction does not fit any more and is put above it, and so on, until there are many times what is in use. Nothing
    that is in use moves, and nothing is set for the rest of the process.

    Args:
        most: bytes by which the process may grow before it is trimmed.
    """

    def __init__(self, most: int) -> None:
        self.most = max(most, LEAST_FREED)
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._passed = 0
        self._least = self._held()

    def passed(self, size: int) -> None:
        """So many bytes have come and are about to go."""
        self._passed += size
        if self._passed < LOOK_BYTES or self._trim is None:
            return
        self._passed = 0
        held = self._held()
        self._least = min(self._least, held)
        if held - self._least > self.most:  # what is in use may have grown, too: then little is lost
            self._trim(0)
            self._least = self._held()

    def _held(self) -> int:
        """Bytes of memory of this process that belong to no file."""
        if self._trim is None:
            return 0
        with open("/proc/self/statm", "rb", buffering=0) as file:
            _, resident, shared = file.read(200).split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
