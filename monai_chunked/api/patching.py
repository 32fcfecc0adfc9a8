"""
MONAI's ``sliding_window_inference`` in programs that nobody edits: it works in chunks, and answers as it did.

The function object stays, only its code is another one. So every name, closure, default argument, partial and pickle
that has the function has it still, and ends up here; and undoing is one assignment.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import threading
from types import FunctionType, TracebackType
from typing import Any

from monai.inferers.utils import sliding_window_inference as monais

from monai_chunked.api.as_monai import POSTPROCESSING, CallAsMonai
from monai_chunked.api.tally import Chunked, Tally
from monai_chunked.plan.layout import NothingLeft

__all__ = ["Patch", "infer_as_monai", "patch"]


logger = logging.getLogger("monai_chunked")


unpatched = FunctionType(monais.__code__, monais.__globals__, monais.__name__, monais.__defaults__, monais.__closure__)
"""What MONAI's function does without us."""
unpatched.__kwdefaults__, unpatched.__annotations__ = monais.__kwdefaults__, monais.__annotations__


SIGNATURE = inspect.signature(unpatched)


*_monais, _kwargs = SIGNATURE.parameters.values()
_ours = inspect.Parameter(POSTPROCESSING, inspect.Parameter.KEYWORD_ONLY, default=None)
PATCHED_SIGNATURE = SIGNATURE.replace(parameters=[*_monais, _ours, _kwargs])
"""What programs see that ask which keywords they may forward."""


class Patch:
    """MONAI's function works in chunks until :py:meth:`undo`, or the end of a ``with``. Made by :py:func:`patch`.

    Attributes:
        tally: what has run in this process since.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        _begin(self)
        atexit.register(self.undo)

    def undo(self) -> None:
        """Give MONAI's function its own code back, when all other patches are undone too, and log the summary.

        More than once is as good as once.
        """
        if _end(self):
            atexit.unregister(self.undo)
            if not self.tally.is_empty:
                logger.info("%s", self.summary())

    def summary(self) -> str:
        """What has run in this process since, what it saved, and what would save more; a few lines."""
        return str(self.tally)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def patch() -> Patch:
    """Let MONAI's ``sliding_window_inference`` work in chunks, wherever a program calls it, with the same answer.

    It takes effect at once, in all modules, those that are imported later too, and with it in
    ``SlidingWindowInferer``, ``SlidingWindowInfererAdapt``, ``SliceInferer``, their subclasses and objects that were
    pickled. The function and the classes stay the objects that they are. Calls whose answer could differ in any bit
    are left to MONAI's own code: see ``docs/unedited_programs.md``.

    ``postprocessing`` as in :py:func:`chunked_sliding_window_inference` is one more keyword of it, where the network
    has no parameter of that name: programs that forward keywords can save the memory of their scores by it.

    Returns:
        an object for ``with`` or with a method ``undo()``. Where there are several, the last one to be undone restores
        MONAI's code. ``summary()`` says what has run; it is also logged to ``monai_chunked`` at the end, as ``INFO``.

    Example::

        monai_chunked.patch()          # from here on, or
        with monai_chunked.patch():    # in here
            program.main()

    >>> import torch
    >>> from monai.inferers import SlidingWindowInferer
    >>> with patch() as patched:
    ...     scores = SlidingWindowInferer(4)(torch.zeros(1, 1, 8, 8), torch.nn.Conv2d(1, 3, 1).requires_grad_(False))
    >>> print(patched.summary().splitlines()[0])
    1 call of MONAI's sliding_window_inference ran in chunks
    """
    return Patch()


# ---------------------------------------------------------------- taking the place of MONAI's code

_lock = threading.Lock()
_patches: list[Patch] = []


def sliding_window_inference(*args: Any, **kwargs: Any) -> Any:
    # this code runs with the names of MONAI's module, where the next line finds its own
    from monai_chunked.api.patching import infer_as_monai

    return infer_as_monai(*args, **kwargs)


def _begin(patched: Patch) -> None:
    with _lock:
        _patches.append(patched)
        monais.__code__ = sliding_window_inference.__code__
        monais.__signature__ = PATCHED_SIGNATURE  # type: ignore[attr-defined]


def _end(patched: Patch) -> bool:
    """Take a patch away; returns whether it was still there."""
    with _lock:
        if patched not in _patches:
            return False
        _patches.remove(patched)
        if not _patches:
            monais.__code__ = unpatched.__code__
            del monais.__signature__  # type: ignore[attr-defined]
        return True


def _in_a_forked_process() -> None:
    """A forked process counts its own calls, and has a lock that none of its parent's threads holds."""
    global _lock
    _lock = threading.Lock()
    for patched in _patches:
        patched.tally = Tally()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_process)


# ---------------------------------------------------------------- a call


def infer_as_monai(*args: Any, **kwargs: Any) -> Any:
    """What a call of MONAI's function becomes.

    Args:
        args, kwargs: as the program gave them.

    Raises:
        ValueError: when the program gives ``postprocessing`` to a call that does not run in chunks.
    """
    try:
        given = SIGNATURE.bind(*args, **kwargs)
    except TypeError:
        return unpatched(*args, **kwargs)  # which says what is wrong with them
    call = CallAsMonai(given)
    reason = call.why_not()
    if reason is None:
        try:
            result = call.run()
        except (ValueError, TypeError) as error:
            if (call.started and not isinstance(error, NothingLeft)) or call.postprocessing is not None:
                raise
            reason = str(error)  # MONAI's code may do it, or says in its own words what is wrong
        else:
            _count(Chunked(call.inputs, call.parameters, result, call.postprocessing is None))
            return result
    if call.postprocessing is not None:
        raise ValueError(f"postprocessing={call.postprocessing!r} needs a call that runs in chunks: {reason}")
    _count(reason)
    return unpatched(*args, **kwargs)


def _count(call: Chunked | str) -> None:
    with _lock:
        for patched in _patches:
            patched.tally.add(call)
