"""CPU memory of open chunks, which is used again for others and given back when nobody needs it."""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left, insort
from operator import itemgetter

import torch

from monai_chunked.machine.memory import addresses_limited

__all__ = ["Pages"]


class Pages:
    """Hands out memory, and keeps what comes back as long as all together is no more than a limit.

    Every chunk gets pages of its own. In the heap of the C library, where what is smaller than 32 MiB would be, chunks
    of many sizes leave holes that others do not fit into. Pages have addresses for the largest chunk, but memory for
    the chunk that is in them: they serve for any chunk afterwards, and the operating system takes back, or adds, the
    difference. So addresses must not be scarce.

    It may be used from several threads.

    Args:
        dtype: of the sums.
        most: the bytes that chunks take at one time.
        largest: bytes of the largest chunk.

    Attributes:
        used: bytes of chunks.
        kept: bytes in no use.
    """

    def __init__(self, dtype: torch.dtype, most: int, largest: int) -> None:
        self.dtype = dtype
        self.most = most
        self.largest = largest
        self.used = self.kept = 0
        self._lock = threading.Lock()
        self._lent: dict[int, mmap.mmap] = {}  # by address
        self._kept: list[tuple[int, mmap.mmap]] = []  # with the bytes that they hold; ascending

    @staticmethod
    def supported() -> bool:
        """Whether the operating system takes back some of many pages, and addresses are not limited like memory."""
        return hasattr(mmap, "MADV_DONTNEED") and not addresses_limited()

    def allocate(self, elements: int) -> torch.Tensor:
        """Memory for a chunk, flat; it holds anything."""
        size = elements * self.dtype.itemsize
        with self._lock:
            pages = self._take(size)
            self.used += size
            while self._kept and self.used + self.kept > self.most:
                held, others = self._kept.pop()
                self.kept -= held
                self._keep(others, held)
            chunk = torch.frombuffer(pages, dtype=self.dtype, count=elements)
            self._lent[chunk.data_ptr()] = pages
        return chunk

    def release(self, chunk: torch.Tensor) -> None:
        """A chunk does not count any more. It has its memory until it is recycled."""
        with self._lock:
            self.used -= chunk.nbytes

    def recycle(self, chunk: torch.Tensor) -> None:
        """The memory of a released chunk can be used again."""
        with self._lock:
            self._keep(self._lent.pop(chunk.data_ptr()), chunk.nbytes)

    def _take(self, size: int) -> mmap.mmap:
        """Pages that hold little more than that, or else those that hold most, or new ones."""
        if not self._kept:
            return mmap.mmap(-1, self.largest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        place = bisect_left(self._kept, size, key=itemgetter(0))
        held, pages = self._kept.pop(min(place, len(self._kept) - 1))
        self.kept -= held
        _shrink(pages, held, size)
        return pages

    def _keep(self, pages: mmap.mmap, held: int) -> None:
        """As many of them as there is room for."""
        room = self.most - self.used - self.kept
        if room > 0:
            held = _shrink(pages, held, room)
            insort(self._kept, (held, pages), key=itemgetter(0))
            self.kept += held


def _shrink(pages: mmap.mmap, held: int, most: int) -> int:
    """Let the operating system take back what pages hold beyond a size; what they hold then."""
    start = -(-most // mmap.PAGESIZE) * mmap.PAGESIZE
    if start < held:
        pages.madvise(mmap.MADV_DONTNEED, start, held - start)
    return min(held, most)
