"""A call of MONAI's ``sliding_window_inference`` that works in chunks and answers as MONAI's own code, to the bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from types import NoneType
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils import BlendMode

from monai_chunked.call.call import Call
from monai_chunked.call.checks import check_condition
from monai_chunked.call.settings import Settings
from monai_chunked.inputs.source import check_inputs, source_of
from monai_chunked.outputs.base import OutputWriter, Result
from monai_chunked.outputs.memory_output import MemoryOutput
from monai_chunked.plan.window_grid import padding
from monai_chunked.run.run import Here, infer
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["POSTPROCESSING", "CallAsMonai", "why_not_alike"]


POSTPROCESSING = "postprocessing"
"""The one parameter of ours that programs may forward."""


TENSORS = (torch.Tensor, torch.nn.Parameter, MetaTensor)
"""What MONAI's function is made for; of other kinds of tensors nothing is known."""


def why_not_alike(inputs: Any, buffer_steps: int | None) -> str | None:
    """Why scores that are blended in chunks may have other bits than MONAI's; ``None``: they have the same.

    Args:
        inputs: the image.
        buffer_steps: MONAI's parameter.
    """
    if type(inputs) not in TENSORS or inputs.device.type == "meta":
        return f"inputs are {type(inputs).__name__}"
    if not inputs.is_floating_point():
        return f"inputs are {inputs.dtype}"
    return "with buffer_steps it adds up in another order" if (buffer_steps or 0) > 0 else None


class CallAsMonai:
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
        """Why the call is left to MONAI's code, as the answer might be another one; ``None``: it is not."""
        reason = why_not_alike(self.inputs, self.parameters["buffer_steps"])
        if reason is not None:
            return reason
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return "it is traced"
        if self.parameters["mode"] not in [mode.value for mode in BlendMode]:
            return f"mode is {self.parameters['mode']}"
        if not isinstance(self._condition, (torch.Tensor, NoneType)):
            return f"condition is {type(self._condition).__name__}"
        return None

    def run(self) -> Any:
        """The answer, made in chunks.

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
    """Whether a network has a parameter of this name, or takes any name. If not, MONAI's own code would raise."""
    call: Any = predictor.forward if isinstance(predictor, torch.nn.Module) else predictor
    if hasattr(call, "schema"):  # of TorchScript
        return any(argument.name == name for argument in call.schema.arguments)
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


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
