"""
What the processes of a run say to each other, and how each learns that another one has failed or is gone.

Between any two there is one connection, of gloo, whatever the backend of the process group: what is said is in CPU
memory. One thread sends and one receives for each of the others. The last thing that is said either way is that all is
well, or who has failed and why; a process that ends without it has closed its connections, which the threads notice at
once. So nobody waits for somebody who is gone.
"""

from __future__ import annotations

import pickle
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from monai_chunked.workers.torchrun.meeting import GONE, connected, ended

__all__ = ["Peers", "together"]


FOREVER = timedelta(days=3650)
"""A window may take any time, and who is gone is noticed at once."""


NEVER_ENDED = 10
"""Seconds to wait for what is being sent to a process that is gone: gloo may miss that, and never end it."""


SAID, SUMS, BOX, WELL, FAILED = range(5)
"""What a message is: a value, sums of a chunk, a box of a result, or one of the two that come last."""


Handler = Callable[[int, Any, torch.Tensor], None]
"""Takes a message: from whom, what is said of it, and its bytes."""


@dataclass
class _Message:
    kind: int
    about: object = None
    tensor: torch.Tensor | None = None
    sent: threading.Event = field(default_factory=threading.Event)


class Peers:
    """The processes of a run, as one of them sees them.

    Args:
        connections: of gloo, for this run alone.
        rank: of this process.
        size: how many there are.

    Attributes:
        all_know: whether all processes raise the same error, so that nobody needs to be told.
    """

    def __init__(self, connections: Any, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.all_know = False
        self._connections = connections
        self._changed = threading.Condition()
        self._failure: tuple[int, str] | None = None
        self._inbox: dict[tuple[int, int], deque[tuple[Any, torch.Tensor]]] = defaultdict(deque)
        self._handlers: dict[int, Handler] = {}
        self.others = [peer for peer in range(size) if peer != rank]
        self._outbox: dict[int, deque[_Message]] = {peer: deque() for peer in self.others}
        self._gone: set[int] = set()
        self._receivers = {peer: threading.Thread(target=self._receive, args=(peer,)) for peer in self.others}
        # a thread that cannot be ended must not keep the process
        self._senders = {peer: threading.Thread(target=self._send, args=(peer,), daemon=True) for peer in self.others}
        for peer in self.others:
            self._receivers[peer].name = f"monai_chunked-receive-{peer}"
            self._senders[peer].name = f"monai_chunked-send-{peer}"
            self._receivers[peer].start()
            self._senders[peer].start()

    def say(self, rank: int, value: object) -> None:
        """Send a value that can be pickled. Returns at once."""
        self._put(rank, _Message(SAID, value))

    def hear(self, rank: int) -> Any:
        """The next value that a process says."""
        return self._take(rank, SAID)[0]

    def send_sums(self, rank: int, sums: torch.Tensor) -> None:
        """Send the sums of a chunk, which nobody changes afterwards. Returns at once."""
        self._put(rank, _Message(SUMS, (tuple(sums.shape), sums.dtype), sums))

    def receive_sums(self, rank: int) -> torch.Tensor:
        """The next sums from a process."""
        (shape, dtype), data = self._take(rank, SUMS)
        return data.view(dtype).view(shape)

    def flush(self) -> None:
        """Wait until all is sent."""
        self.wait(lambda: not any(self._outbox.values()))

    def send_box(self, rank: int, about: object, values: torch.Tensor) -> None:
        """Send a box of a result. Returns when it is sent, so that its memory can be used again."""
        message = _Message(BOX, (about, tuple(values.shape), values.dtype), values)
        self._put(rank, message)
        self.wait(message.sent.is_set)

    def on_box(self, handler: Handler) -> None:
        """Boxes go to this function, from several threads, as soon as they arrive."""
        with self._changed:
            self._handlers[BOX] = handler
            self._changed.notify_all()

    def check(self) -> None:
        """
        Raises:
            RuntimeError: when another process has failed or is gone; the message says which and why.
        """
        if self._failure is not None:
            raise ended(*self._failure)

    def fail(self, error: BaseException) -> None:
        """This process cannot go on: tell the others."""
        self._failed(self.rank, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """The run is over, well or not: wait until the others know."""
        with self._changed:
            if self._failure is None:
                for messages in self._outbox.values():
                    messages.append(_Message(WELL))
            self._changed.notify_all()
        for rank in self.others:
            self._receivers[rank].join()
            self._senders[rank].join(NEVER_ENDED if rank in self._gone else None)
        self._connections = None

    def _put(self, rank: int, message: _Message) -> None:
        with self._changed:
            self.check()
            self._outbox[rank].append(message)
            self._changed.notify_all()

    def _take(self, rank: int, kind: int) -> tuple[Any, torch.Tensor]:
        messages = self._inbox[rank, kind]
        self.wait(lambda: messages)
        with self._changed:
            return messages.popleft()

    def wait(self, until: Callable[[], object]) -> None:
        """Until something is so, which another thread sees to; raise if others cannot go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or until())
            if not until():
                self.check()

    def changed(self) -> None:
        """Something is so now that somebody may wait for."""
        with self._changed:
            self._changed.notify_all()

    def _failed(self, rank: int, text: str) -> None:
        """Send nothing more, but tell each of the others that are there who has failed."""
        with self._changed:
            if text == GONE:
                self._gone.add(rank)
            if self._failure is None:
                self._failure = rank, text
                for messages in self._outbox.values():
                    messages.clear()
                    messages.append(_Message(FAILED, self._failure))
            self._changed.notify_all()

    def _send(self, rank: int) -> None:
        """Send what is put for a process, in a thread of its own, up to the last message."""
        messages = self._outbox[rank]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: messages)
                message = messages.popleft()
                if rank in self._gone:
                    return
            try:
                self._write(rank, message)
            except RuntimeError:
                self._failed(rank, GONE)
                return
            message.sent.set()
            self.changed()
            if message.kind in (WELL, FAILED):
                return

    def _receive(self, rank: int) -> None:
        """Receive what a process sends, in a thread of its own, up to the last message."""
        while True:
            try:
                kind, about, data = self._read(rank)
            except RuntimeError:
                self._failed(rank, GONE)
                return
            if kind == WELL:
                return
            if kind == FAILED:
                self._failed(*about)
                return
            if self._failure is None:
                self._deliver(rank, kind, about, data)

    def _deliver(self, rank: int, kind: int, about: Any, data: torch.Tensor) -> None:
        try:
            if kind != BOX:
                with self._changed:
                    self._inbox[rank, kind].append((about, data))
                    self._changed.notify_all()
                return
            self.wait(lambda: self._handlers)
            about, shape, dtype = about
            self._handlers[BOX](rank, about, data.view(dtype).view(shape))
        except BaseException as error:
            self.fail(error)  # no more than the first failure is told

    def _write(self, rank: int, message: _Message) -> None:
        about = torch.frombuffer(bytearray(pickle.dumps(message.about)), dtype=torch.uint8)
        data = torch.empty(0, dtype=torch.uint8)
        if message.tensor is not None and message.tensor.numel():
            data = message.tensor.cpu().contiguous().view(-1).view(torch.uint8)
        header = torch.tensor([message.kind, len(about), len(data)])
        for tensor in (header, about, data):
            if len(tensor):
                self._connections.send([tensor], rank, 0).wait(FOREVER)

    def _read(self, rank: int) -> tuple[int, Any, torch.Tensor]:
        kind, about_size, size = self._bytes(rank, torch.empty(3, dtype=torch.int64)).tolist()
        about = self._bytes(rank, torch.empty(about_size, dtype=torch.uint8))
        data = self._bytes(rank, torch.empty(size, dtype=torch.uint8))
        return kind, pickle.loads(about.numpy().tobytes()), data

    def _bytes(self, rank: int, memory: torch.Tensor) -> torch.Tensor:
        if len(memory):
            self._connections.recv([memory], rank, 0).wait(FOREVER)
        return memory


@contextmanager
def together(process_group: dist.ProcessGroup | Literal["world"] | None) -> Iterator[Peers | None]:
    """The processes of a run, while it lasts; ``None``: there is one.

    Args:
        process_group: ``"world"``, or a ``ProcessGroup`` whose members all call this; ``None``: there is none.

    Raises:
        RuntimeError: when another one has failed or is gone.
    """
    if process_group is None:
        yield None
        return
    peers = Peers(*connected(None if process_group == "world" else process_group))
    try:
        yield peers
    except BaseException as error:
        if not peers.all_know:
            peers.fail(error)
        raise
    finally:
        peers.close()
    peers.check()
