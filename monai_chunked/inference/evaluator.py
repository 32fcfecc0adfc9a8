"""MONAI's evaluator that does in chunks what of its postprocessing can be done in chunks."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai import config
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents, PrepareBatchDefault, PrepareBatchExtraInput, default_prepare_batch
from monai.inferers import SimpleInferer
from monai.transforms import (
    Activationsd,
    CastToTyped,
    Compose,
    ConvertToMultiChannelBasedOnBratsClassesd,
    EnsureTyped,
    Identityd,
    Invertd,
    InvertibleTransform,
    MapLabelValued,
)
from monai.utils import CommonKeys, optional_import

from monai_chunked.inference.forecast import plan_logged
from monai_chunked.inference.replacing import chunked_inferer
from monai_chunked.inference.splitting import split
from monai_chunked.inference.vouching import EachVoxeld

__all__ = ["ChunkedEvaluator"]


logger = logging.getLogger("monai_chunked")


SCORES = {Activationsd, CastToTyped, EnsureTyped, Identityd}
"""What leaves scores as many as they are. If there is nothing else, there is nothing to save."""


KEEPS_CLASS = {CastToTyped, ConvertToMultiChannelBasedOnBratsClassesd, EachVoxeld, Identityd, MapLabelValued}
"""What does not make a ``MetaTensor`` of a tensor."""


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

    streamed: Compose | None = None
    behind: Callable[..., Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not optional_import("ignite")[1]:
            raise ImportError("ChunkedEvaluator needs PyTorch Ignite: pip install pytorch-ignite")
        bound = inspect.signature(SupervisedEvaluator).bind(*args, **kwargs)
        bound.apply_defaults()
        self._given = bound.arguments
        self._scores_are_seen = False
        self._is_planned = False
        self.behind = self._given["postprocessing"]
        behind = None if self.behind is None else _Behind(self)
        super().__init__(**{**self._given, "postprocessing": behind})
        if self.behind is not None:
            self._split(inverse=True)

    def add_event_handler(self, event_name: Any, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As in Ignite. Whoever asks for what the network says before it is postprocessed gets scores."""
        added = super().add_event_handler(event_name, handler, *args, **kwargs)
        if event_name == IterationEvents.FORWARD_COMPLETED:
            self._scores_are_seen = True
            if self.streamed is not None:
                self._leave(SCORES_ARE_SEEN)
        return added

    def _split(self, inverse: bool) -> None:
        """Give to the inferer what it can do, if the answer is the same."""
        inferer = self._why_not() or chunked_inferer(self._given["inferer"])
        if isinstance(inferer, str):
            self._leave(inferer)
            return
        inverse = inverse and not self._given["compile"] and _is_monais(self._given["prepare_batch"])
        streamed, behind = split(self._given["postprocessing"], CommonKeys.PRED, CommonKeys.IMAGE, inverse)
        if streamed is None or all(type(each) in SCORES for each in streamed.transforms):
            first = None if behind is None else _first_of(behind)
            self._leave(f"{first} needs scores of the whole volume" if first else "postprocessing ends in scores")
            return
        inferer.postprocessing = streamed
        self.inferer, self.streamed, self.behind = inferer, streamed, behind
        logger.info("in chunks: %s", _text(streamed))
        logger.info("behind: %s", _text(behind))

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
        """One iteration, with what is found out from its data."""
        inverts = [each for each in self.streamed.transforms if isinstance(each, Invertd)] if self.streamed else []
        if any(not _inverts_the_image(each, batchdata) for each in inverts):
            self._split(inverse=False)
        silent = self._given["compile"] or not logger.isEnabledFor(logging.INFO)
        if self._is_planned or self.streamed is None or silent:
            return super()._iteration(engine, batchdata)
        self._is_planned = True
        with plan_logged(self.network, self.inferer, lambda: self.state.output[CommonKeys.IMAGE]):
            return super()._iteration(engine, batchdata)


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


def _is_monais(prepare_batch: Any) -> bool:
    """Whether what the network sees is the image of the batch, with its metadata."""
    known = (PrepareBatchDefault, PrepareBatchExtraInput)
    return prepare_batch is default_prepare_batch or type(prepare_batch) in known


def _inverts_the_image(invert: Invertd, batch: Any) -> bool:
    """Whether ``Invertd`` looks at the image's own metadata, and at nothing else in the batch."""
    key = CommonKeys.IMAGE
    if not isinstance(batch, Mapping) or not isinstance(batch.get(key), MetaTensor) or config.USE_META_DICT:
        return False
    return (
        InvertibleTransform.trace_key(key) not in batch
        and (invert.orig_meta_keys[0] or f"{key}_{invert.meta_key_postfix[0]}") not in batch
    )


def _first_of(behind: Any) -> str:
    first = behind.transforms[0] if isinstance(behind, Compose) and behind.transforms else behind
    return str(getattr(type(first), "__name__", first))


def _text(transforms: Compose | None) -> str:
    """As in ``Activationsd(pred), AsDiscreted(pred)``."""
    names = [] if transforms is None else [_name(each) for each in transforms.transforms]
    return ", ".join(names) or "nothing"


def _name(transform: Any) -> str:
    own = transform.transform if isinstance(transform, EachVoxeld) else transform
    keys = ", ".join(map(str, getattr(transform, "keys", ())))
    return f"{type(own).__name__}({keys})"
