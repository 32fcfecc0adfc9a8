"""MONAI's evaluator that does in chunks what of its postprocessing can be done in chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import SlidingWindowInfererAdapt
from monai.transforms import Compose, Invertd
from monai.utils import CommonKeys, optional_import

from monai_chunked.api.evaluator.costs import plan_logged, what_plans
from monai_chunked.api.evaluator.deciding import (
    Decision,
    PredictionCall,
    ends_in_scores,
    text_of,
    why_not_batched,
)
from monai_chunked.api.evaluator.replacing import blends_alike, chunked_inferer
from monai_chunked.api.evaluator.split import images_of, split
from monai_chunked.machine.caller import warn_caller
from monai_chunked.transforms.chain import Streamed
from monai_chunked.transforms.reasons import KEEPS_CLASS

__all__ = ["ChunkedEvaluator"]


logger = logging.getLogger("monai_chunked")


class ChunkedEvaluator(SupervisedEvaluator):
    """
    MONAI's ``SupervisedEvaluator`` that never holds the scores of the whole volume, where its postprocessing allows.

    The longest beginning of ``postprocessing`` that can be done a chunk at a time (:py:func:`split_postprocessing`) is
    done by the inferer, and the rest behind it, as ever. What comes behind the postprocessing (handlers, metrics, saved
    files) sees what it would see with MONAI's. Where that is not certain, all of it is done behind the inferer, and one
    warning says why.

    What runs is decided at each iteration, from what the evaluator has then. As with ``SupervisedEvaluator``, its
    attributes, the parameters of its inferer, its postprocessing and its handlers may change at any time.

    Args:
        args, kwargs: those of ``SupervisedEvaluator``. In the place of a ``SlidingWindowInferer``,
            ``SlidingWindowInfererAdapt`` or ``SliceInferer`` the one that works in chunks runs, with its parameters; a
            :py:class:`ChunkedSlidingWindowInferer` keeps its own, and if it has a ``postprocessing`` nothing is added.

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not optional_import("ignite")[1]:
            raise ImportError("ChunkedEvaluator needs PyTorch Ignite: pip install pytorch-ignite")
        self._ending: _Ending | None = None
        self._decollates: Callable[..., Any] | None = None
        self._ends: Callable[..., Any] | None = None
        self._now: _Iteration | None = None
        self._told: set[str] = set()
        super().__init__(*args, **kwargs)

    @property
    def streamed(self) -> Compose | None:
        """What the inferer does to each chunk, if the batch allows it; ``None``: nothing."""
        return self._decide().streamed

    @property
    def behind(self) -> Any:
        """What is left for the whole result; ``None``: nothing."""
        return self._decide().behind

    def _register_decollate(self) -> None:
        super()._register_decollate()
        self._decollates = self._handlers(IterationEvents.MODEL_COMPLETED)[-1]

    def _register_postprocessing(self, posttrans: Callable[..., Any]) -> None:
        if self._ending is not None:  # this one gets what the first one makes
            super()._register_postprocessing(posttrans)
            return
        self._ending = _Ending(self, posttrans)
        super()._register_postprocessing(self._ending)
        self._ends = self._handlers(IterationEvents.MODEL_COMPLETED)[-1]

    def _handlers(self, event: IterationEvents) -> list[Callable[..., Any]]:
        """The handlers of an event, in their order. Ignite has no public way to ask for them."""
        return [handler for handler, *_ in self._event_handlers.get(event, ())]

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        """MONAI's, with the inferer that is decided on when it is called."""
        if engine is not self or self._has_others_iteration():
            return super()._iteration(engine, batchdata)
        self._now = _Iteration(self, batchdata)
        try:
            return super()._iteration(self._now, batchdata)
        finally:
            self._now = None

    def _has_others_iteration(self) -> bool:
        """Whether a class between this one and MONAI's has an iteration, which may look at scores."""
        following: Any = super()._iteration
        return bool(following.__func__ is not SupervisedEvaluator._iteration)

    def _decide(self, call: PredictionCall | None = None) -> Decision:
        """What runs, by what the evaluator has now.

        Args:
            call: of the inferer; ``None``: it is not known yet.
        """
        whole = None if self._ending is None else self._ending.postprocessing
        chunked = chunked_inferer(self.inferer, call is not None and call.has_more)
        if isinstance(chunked, str):
            return Decision(self.inferer, None, whole, chunked)
        blending = chunked if call is not None and blends_alike(self.inferer, call.inputs) else self.inferer
        if whole is None or (reason := self._why_not()) is not None:
            return Decision(blending, None, whole, None if whole is None else reason)
        parts = split(whole, CommonKeys.PRED, None)
        reason = self._why_not_inverted(parts.streamed, call)
        if reason is not None:
            parts = split(whole, CommonKeys.PRED, None, reason)
        if ends_in_scores(parts.streamed):
            return Decision(blending, None, whole, parts.reason or "postprocessing ends in scores")
        chunked.postprocessing = parts.streamed
        return Decision(chunked, parts.streamed, parts.behind, reason, parts.reason)

    def _why_not(self) -> str | None:
        """What stands in the way of doing anything in chunks."""
        if self._process_function != self._iteration or self._has_others_iteration():
            return OWN_ITERATION
        if self._decollates is None:
            return "with decollate=False postprocessing gets batches, not images"
        if self._handlers(IterationEvents.MODEL_COMPLETED)[:2] != [self._decollates, self._ends]:
            return "other handlers at MODEL_COMPLETED see scores"
        sees_scores = bool(self._handlers(IterationEvents.FORWARD_COMPLETED))
        return "a handler at FORWARD_COMPLETED sees scores" if sees_scores else None

    def _why_not_inverted(self, streamed: Streamed | None, call: PredictionCall | None) -> str | None:
        """Have ``Invertd`` undo what it would behind the inferer, by what the postprocessing is going to get.

        Args:
            streamed: what may be done in chunks.
            call: of the inferer; ``None``: it is not known yet.

        Returns:
            what stands in the way; ``None``: nothing does, or there is no ``Invertd``.
        """
        inverts = [] if streamed is None else [step for step in streamed.transforms if isinstance(step, Invertd)]
        if streamed is None or not inverts:
            return None
        if self.compile:
            return COMPILED
        if call is None:
            return None
        batch, output = self.state.batch, self.state.output
        data = {**batch, **output} if isinstance(batch, dict) else output  # as MONAI's engines put them together
        images = images_of(streamed, data, call.inputs)
        if images is None or isinstance(images, str):
            return images
        streamed.images = images
        return why_not_batched(inverts[0], images, tuple(call.inputs.shape[2:]))

    def _tell(self, decision: Decision) -> None:
        """Say what is done in chunks and what is not."""
        if decision.streamed is not None and self._is_new(f"{text_of(decision.streamed)}; {text_of(decision.behind)}"):
            logger.info("in chunks: %s", text_of(decision.streamed))
            logger.info("behind: %s", text_of(decision.behind))
            if decision.left_by is not None:
                logger.info("because %s", decision.left_by)
        if decision.reason is not None and self._ending is not None:
            message = f"ChunkedEvaluator leaves {decision.left(self.inferer)}: {decision.reason}"
            if self._is_new(message):
                warn_caller(message)

    def _is_new(self, message: str) -> bool:
        """Whether this has not been said yet."""
        is_new = message not in self._told
        self._told.add(message)
        return is_new


COMPILED = "with compile=True the network sees an image without metadata, and the prediction gets that of the image"


OWN_ITERATION = "an iteration of its own (iteration_update, _iteration) does with scores what it likes"


class _Iteration:
    """The evaluator as MONAI's iteration sees it: its inferer is the one that this iteration runs.

    Args:
        evaluator: whose iteration it is.
        batch: of this iteration.
    """

    def __init__(self, evaluator: ChunkedEvaluator, batch: Any) -> None:
        self.evaluator = evaluator
        self.batch = batch
        self.decision: Decision | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.evaluator, name)

    def inferer(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Decide, and predict. Not earlier, because ``prepare_batch`` may change what the evaluator has."""
        evaluator = self.evaluator
        decision = self.decision = evaluator._decide(PredictionCall(self.batch, inputs, bool(args or kwargs)))
        evaluator._tell(decision)
        try:
            return self._predicted(decision, inputs, network, *args, **kwargs)
        finally:
            if isinstance(evaluator.inferer, SlidingWindowInfererAdapt):  # what it has learnt, as MONAI's keeps it
                evaluator.inferer.cpu_thresh = decision.inferer.cpu_thresh

    def _predicted(self, decision: Decision, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        """The prediction, with its plan in the log where that is a new one."""
        evaluator = self.evaluator
        silent = decision.streamed is None or evaluator.compile or not logger.isEnabledFor(logging.INFO)
        if silent or not evaluator._is_new(f"{text_of(decision.streamed)}: {what_plans(decision.inferer)}"):
            return decision.inferer(inputs, network, *args, **kwargs)
        which = "the first image" if evaluator._is_new("a plan") else "the next image, as something has changed"
        with plan_logged(network, decision.inferer, inputs, which):
            return decision.inferer(inputs, network, *args, **kwargs)


class _Ending:
    """A postprocessing as MONAI's engines call it. It does what this iteration has not done in chunks.

    Args:
        evaluator: whose iteration it is.
        postprocessing: all of it.
    """

    def __init__(self, evaluator: ChunkedEvaluator, postprocessing: Callable[..., Any]) -> None:
        self.evaluator = evaluator
        self.postprocessing = postprocessing

    def __repr__(self) -> str:
        return repr(self.postprocessing)  # in messages of what fails in it

    def __call__(self, data: Any) -> Any:
        evaluator = self.evaluator
        decision = None if evaluator._now is None else evaluator._now.decision
        if decision is None:  # whoever made this prediction did not ask
            evaluator._tell(Decision(evaluator.inferer, None, self.postprocessing, OWN_ITERATION))
            return self.postprocessing(data)
        kinds = set() if decision.streamed is None else {type(transform) for transform in decision.streamed.transforms}
        if get_track_meta() and not kinds <= KEEPS_CLASS:
            data = {**data, CommonKeys.PRED: _as_meta_tensor(data[CommonKeys.PRED])}
        return data if decision.behind is None else decision.behind(data)


def _as_meta_tensor(prediction: Any) -> Any:
    """A tensor as a ``MetaTensor``, which is what transforms return; all else as it is."""
    plain = isinstance(prediction, torch.Tensor) and not isinstance(prediction, MetaTensor)
    return MetaTensor(prediction) if plain else prediction
