"""MONAI's evaluator that does in chunks what of its postprocessing can be done in chunks."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import SimpleInferer
from monai.transforms import Activationsd, CastToTyped, Compose, EnsureTyped, Identityd, ToDeviced
from monai.utils import CommonKeys, optional_import

from monai_chunked.inference.chains import Streamed
from monai_chunked.inference.forecast import plan_logged
from monai_chunked.inference.reasons import KEEPS_CLASS
from monai_chunked.inference.replacing import chunked_inferer
from monai_chunked.inference.splitting import images_of, split
from monai_chunked.inference.vouching import EachVoxeld

__all__ = ["ChunkedEvaluator"]


logger = logging.getLogger("monai_chunked")


SCORES = {Activationsd, CastToTyped, EnsureTyped, Identityd, ToDeviced}
"""What leaves scores as many as they are. If there is nothing else, there is nothing to save."""


class ChunkedEvaluator(SupervisedEvaluator):
    """
    MONAI's ``SupervisedEvaluator`` that never holds the scores of the whole volume, where its postprocessing allows.

    The longest beginning of ``postprocessing`` that can be done a chunk at a time (:py:func:`split_postprocessing`) is
    done by the inferer, and the rest behind it, as ever. What comes behind the postprocessing (handlers, metrics, saved
    files) sees what it would see with MONAI's. Where that is not certain, or the inferer is no sliding window, all is
    left as it is, and one warning says why.

    Args:
        args, kwargs: those of ``SupervisedEvaluator``. A ``SlidingWindowInferer``, ``SlidingWindowInfererAdapt`` or
            ``SliceInferer`` is replaced by the one that works in chunks, with its parameters; a
            :py:class:`ChunkedSlidingWindowInferer` keeps its own, and if it has a ``postprocessing`` nothing is added.

    Attributes:
        streamed: what the inferer does to each chunk; ``None``: nothing.
        behind: what is left for the whole result; ``None``: nothing.

    Raises:
        ImportError: when PyTorch Ignite is not installed.

    Example::

        evaluator = ChunkedEvaluator(
            device=device,
            val_data_loader=loader,
            network=network,
            inferer=SlidingWindowInferer(96, overlap=0.5),
            postprocessing=Compose([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True), ...]),
        )
        evaluator.run()
    """

    streamed: Streamed | None = None
    behind: Callable[..., Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not optional_import("ignite")[1]:
            raise ImportError("ChunkedEvaluator needs PyTorch Ignite: pip install pytorch-ignite")
        bound = inspect.signature(SupervisedEvaluator).bind(*args, **kwargs)
        bound.apply_defaults()
        self._given = bound.arguments
        self._scores_are_seen = False
        self._is_planned = False
        self._without_inverse: str | None = None
        self.behind = self._given["postprocessing"]
        behind = None if self.behind is None else _Behind(self)
        super().__init__(**{**self._given, "postprocessing": behind})
        if self.behind is not None:
            self._split()

    def add_event_handler(self, event_name: Any, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As in Ignite. Whoever asks for what the network says before it is postprocessed gets scores."""
        added = super().add_event_handler(event_name, handler, *args, **kwargs)
        if event_name == IterationEvents.FORWARD_COMPLETED:
            self._scores_are_seen = True
            if self.streamed is not None:
                self._leave(SCORES_ARE_SEEN)
        return added

    def _split(self, without_inverse: str | None = None) -> None:
        """Give to the inferer what it can do, if the answer is the same.

        Args:
            without_inverse: why ``Invertd`` stays behind; ``None``: it need not, whichever image of the batch it names.
        """
        self._without_inverse = without_inverse
        inferer = self._why_not() or chunked_inferer(self._given["inferer"])
        if isinstance(inferer, str):
            self._leave(inferer)
            return
        without_inverse = COMPILED if self._given["compile"] else without_inverse
        found = split(self._given["postprocessing"], CommonKeys.PRED, None, without_inverse)
        streamed, behind = found.streamed, found.behind
        if streamed is None or all(type(each) in SCORES for each in streamed.transforms):
            self._leave(found.reason or "postprocessing ends in scores")
            return
        inferer.postprocessing = streamed
        self.inferer, self.streamed, self.behind = inferer, streamed, behind
        logger.info("in chunks: %s", _text(streamed))
        logger.info("behind: %s", _text(behind))
        if found.reason is not None:
            logger.info("because %s", found.reason)

    def _why_not(self) -> str | None:
        """What stands in the way of doing anything in chunks."""
        if self._given["iteration_update"] is not None:
            return "iteration_update does with scores what it likes"
        if not self._given["decollate"]:
            return "with decollate=False postprocessing gets batches, not images"
        return SCORES_ARE_SEEN if self._scores_are_seen else None

    def _leave(self, reason: str) -> None:
        """Do what ``SupervisedEvaluator`` does, and say why."""
        self.streamed, self.behind = None, self._given["postprocessing"]
        self.inferer = self._given["inferer"] or SimpleInferer()
        warnings.warn(
            f"ChunkedEvaluator leaves inferer and postprocessing as they are: {reason}", UserWarning, stacklevel=4
        )

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        """One iteration, with what is found out from its data when the network's input is there."""
        if self._given["postprocessing"] is not None:
            waiting: Any = _AtTheBatch(self)
            self.inferer = waiting
        try:
            return super()._iteration(engine, batchdata)
        finally:
            if isinstance(self.inferer, _AtTheBatch):
                self.inferer = self.inferer.inferer

    def _decide(self) -> None:
        """Have ``Invertd`` undo what it would behind the inferer: by what the postprocessing is going to get."""
        left = self.streamed is None and self._without_inverse is None
        found = None if left or self._given["compile"] else split(self._given["postprocessing"], CommonKeys.PRED, None)
        if found is None or found.streamed is None:
            return
        batch, output = self.state.batch, self.state.output
        data = {**batch, **output} if isinstance(batch, dict) else output  # as MONAI's engines put them together
        images = images_of(found.streamed, data, output[CommonKeys.IMAGE])
        reason = images if isinstance(images, str) else None
        if reason != self._without_inverse:
            self._split(reason)
        if self.streamed is not None:
            self.streamed.images = None if isinstance(images, str) else images

    def _infer(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        """What MONAI's iteration gets of the inferer."""
        self._decide()
        silent = self._given["compile"] or not logger.isEnabledFor(logging.INFO)
        if self._is_planned or self.streamed is None or silent:
            return self.inferer(inputs, network, *args, **kwargs)
        self._is_planned = True
        with plan_logged(self.network, self.inferer, lambda: inputs):
            return self.inferer(inputs, network, *args, **kwargs)


class _AtTheBatch:
    """Stands for the inferer until MONAI's iteration calls it, which has prepared the batch by then.

    Args:
        evaluator: whose inferer it is.
    """

    def __init__(self, evaluator: ChunkedEvaluator) -> None:
        self.evaluator = evaluator
        self.inferer = evaluator.inferer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.evaluator.inferer = self.inferer
        return self.evaluator._infer(*args, **kwargs)


COMPILED = "with compile=True the network sees an image without metadata, and the prediction gets that of the image"


SCORES_ARE_SEEN = "a handler at FORWARD_COMPLETED sees scores"


class _Behind:
    """What is left of the postprocessing, as MONAI's engines call it.

    Args:
        evaluator: knows it.
    """

    def __init__(self, evaluator: ChunkedEvaluator) -> None:
        self.evaluator = evaluator

    def __call__(self, data: Any) -> Any:
        streamed, behind = self.evaluator.streamed, self.evaluator.behind
        kinds = set() if streamed is None else {type(each) for each in streamed.transforms}
        if get_track_meta() and not kinds <= KEEPS_CLASS:
            data = {**data, CommonKeys.PRED: _as_meta_tensor(data[CommonKeys.PRED])}
        return data if behind is None else behind(data)


def _as_meta_tensor(prediction: Any) -> Any:
    """As transforms return tensors of images that have no metadata."""
    plain = isinstance(prediction, torch.Tensor) and not isinstance(prediction, MetaTensor)
    return MetaTensor(prediction) if plain else prediction


def _text(transforms: Compose | None) -> str:
    """As in ``Activationsd(pred), AsDiscreted(pred)``."""
    names = [] if transforms is None else [_name(each) for each in transforms.transforms]
    return ", ".join(names) or "nothing"


def _name(transform: Any) -> str:
    own = transform.transform if isinstance(transform, EachVoxeld) else transform
    keys = ", ".join(map(str, getattr(transform, "keys", ())))
    return f"{type(own).__name__}({keys})"
