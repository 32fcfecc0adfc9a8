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
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType, NoneType, TracebackType
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.utils import sliding_window_inference as monais
from monai.utils import BlendMode

from monai_chunked.api.tally import Chunked, Tally
from monai_chunked.inputs.source import check_inputs, source_of
from monai_chunked.outputs.base import OutputWriter, Result
from monai_chunked.outputs.memory import MemoryOutput
from monai_chunked.plan.window_grid import padding
from monai_chunked.run.call import Call
from monai_chunked.run.checks import check_condition
from monai_chunked.run.run import Here, infer
from monai_chunked.run.settings import Settings
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["Patch", "infer_as_monai", "patch"]


logger = logging.getLogger("monai_chunked")


unpatched = FunctionType(monais.__code__, monais.__globals__, monais.__name__, monais.__defaults__, monais.__closure__)
"""What MONAI's function does without us."""
unpatched.__kwdefaults__, unpatched.__annotations__ = monais.__kwdefaults__, monais.__annotations__


SIGNATURE = inspect.signature(unpatched)


POSTPROCESSING = "postprocessing"
"""The one parameter of ours that programs may forward."""


*_monais, _kwargs = SIGNATURE.parameters.values()
_ours = inspect.Parameter(POSTPROCESSING, inspect.Parameter.KEYWORD_ONLY, default=None)
PATCHED_SIGNATURE = SIGNATURE.replace(parameters=[*_monais, _ours, _kwargs])
"""What programs see that ask which keywords they may forward."""


TENSORS = (torch.Tensor, torch.nn.Parameter, MetaTensor)
"""What MONAI's function is made for; of other kinds of tensors nothing is known."""


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
    pickled. The function and the classes stay the objects that they are. What the answer could differ of in any bit
    is left to MONAI's own code: see ``docs/unedited_programs.md``.

    ``postprocessing`` as in :py:func:`chunked_sliding_window_inference` is one more keyword of it, where the network
    has no parameter of that name: programs that forward keywords can save the memory of their scores by it.

    Returns:
        an object for ``with`` or with a method ``undo()``. Where there are several, the last one to be undone restores
        MONAI's code. ``summary()`` says what has run; it is also logged to ``monai_chunked`` at the end, as ``INFO``.

    Example::

        monai_chunked.patch()          # from here on, or
        with monai_chunked.patch():    # in here
            program.main()

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


def _begin(one: Patch) -> None:
    with _lock:
        _patches.append(one)
        monais.__code__ = sliding_window_inference.__code__
        monais.__signature__ = PATCHED_SIGNATURE  # type: ignore[attr-defined]


def _end(one: Patch) -> bool:
    """Whether it was still there."""
    with _lock:
        if one not in _patches:
            return False
        _patches.remove(one)
        if not _patches:
            monais.__code__ = unpatched.__code__
            del monais.__signature__  # type: ignore[attr-defined]
        return True


def _in_a_forked_process() -> None:
    """It counts its own calls, and waits for no thread that it does not have."""
    global _lock
    _lock = threading.Lock()
    for each in _patches:
        each.tally = Tally()


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
    call = _Call(given)
    reason = call.why_not()
    if reason is None:
        try:
            result = call.run()
        except (ValueError, TypeError) as error:
            if call.started or call.postprocessing is not None:
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
        for each in _patches:
            each.tally.add(call)


class _Call:
    """One call of MONAI's function.

    Args:
        given: its arguments.

    Attributes:
        inputs: the image.
        parameters: MONAI's, by name.
        postprocessing: ours; ``None``: there is none, or it is the network's.
        started: whether the network was called.
    """

    def __init__(self, given: inspect.BoundArguments) -> None:
        given.apply_defaults()
        self.parameters = dict(given.arguments)
        self._args, self._kwargs = self.parameters.pop("args"), self.parameters.pop("kwargs")
        self.inputs, self._predictor = self.parameters.pop("inputs"), self.parameters.pop("predictor")
        self._condition = self._kwargs.pop("condition", None)
        self.parameters["progress"] = bool(self.parameters["progress"])
        own = POSTPROCESSING in self._kwargs and not _takes(self._predictor, POSTPROCESSING)
        self.postprocessing = self._kwargs.pop(POSTPROCESSING) if own else None
        self.started = False

    def why_not(self) -> str | None:
        """Why it is left to MONAI's code, as the answer might be another one; ``None``: it is not."""
        inputs, parameters = self.inputs, self.parameters
        if type(inputs) not in TENSORS or inputs.device.type == "meta":
            return f"inputs are {type(inputs).__name__}"
        if not inputs.is_floating_point():
            return f"inputs are {inputs.dtype}"
        if parameters["buffer_steps"] is not None and parameters["buffer_steps"] > 0:
            return "with buffer_steps it adds up in another order"
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return "it is traced"
        if parameters["mode"] not in [each.value for each in BlendMode]:
            return f"mode is {parameters['mode']}"
        if not isinstance(self._condition, (torch.Tensor, NoneType)):
            return f"condition is {type(self._condition).__name__}"
        return None

    def run(self) -> Any:
        """What it returns, from chunks.

        Raises:
            ValueError, TypeError: when a parameter does not fit, or a prediction.
        """
        check_inputs(self.inputs)
        check_condition(self._condition, self.inputs)
        own = {POSTPROCESSING: self.postprocessing}
        settings = Settings.check(self.inputs.shape, **self.parameters, **own, rounding="monai")
        settings = replace(settings, output=_AsMonai(self.inputs, settings))
        bound = BoundNetwork(self._predictor, self._args, self._kwargs, self._predict)
        condition = None if self._condition is None else source_of(self._condition)
        return infer(Call.of(source_of(self.inputs), bound, settings, condition), Here())

    def _predict(self, *windows: Any, **named: Any) -> Any:
        self.started = True
        return self._predictor(*windows, **named)


def _takes(predictor: Callable[..., Any], name: str) -> bool:
    """Whether a network has a parameter of this name, or of any. If not, MONAI's own code could not but raise."""
    call: Any = predictor.forward if isinstance(predictor, torch.nn.Module) else predictor
    if hasattr(call, "schema"):  # of TorchScript
        return any(argument.name == name for argument in call.schema.arguments)
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


class _AsMonai(MemoryOutput):
    """A result that lies in memory as MONAI's: what was padded is cut off, and its memory stays between the rows.

    So what the program does with it, such as a sigmoid, has the same last bits.

    Args:
        inputs: the image.
        settings: of the call.
    """

    def __init__(self, inputs: torch.Tensor, settings: Settings) -> None:
        super().__init__(settings.device or inputs.device)
        self._unpadded = (settings.image_size, inputs.dtype)
        self._pads = padding(settings.image_size, settings.roi_size)

    def create(self, result: Result) -> OutputWriter:
        size = result.shape[2:]
        if (size, result.dtype) != self._unpadded:  # MONAI copies scores of another dtype at the end
            return super().create(result)
        padded = [before + n + behind for n, (before, behind) in zip(size, self._pads)]
        writer = super().create(replace(result, shape=(*result.shape[:2], *padded)))
        assert writer.memory is not None
        inner = [slice(before, before + n) for n, (before, _) in zip(size, self._pads)]
        writer.memory = writer.memory[(slice(None), slice(None), *inner)]
        return writer
