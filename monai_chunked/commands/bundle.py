"""
``bundle run``: what ``python -m monai.bundle run`` does, with the evaluator that works in chunks.

Arguments, their order of precedence and errors are MONAI's.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from monai.bundle import ConfigWorkflow, create_workflow
from monai.engines import Evaluator, SupervisedEvaluator
from monai.utils import optional_import

from monai_chunked.api.evaluator.evaluator import ChunkedEvaluator
from monai_chunked.api.patching import patch

__all__ = ["add_bundle"]


logger = logging.getLogger("monai_chunked")


CHUNKED = "monai_chunked.ChunkedEvaluator"


REPLACED = ("SupervisedEvaluator", "monai.engines.SupervisedEvaluator", "monai.engines.evaluator.SupervisedEvaluator")
"""What :py:class:`ChunkedEvaluator` takes the place of."""


def add_bundle(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of a command line.

    Args:
        commands: what ``add_subparsers`` returns.
    """
    bundle = commands.add_parser(
        "bundle", help="run a bundle as 'python -m monai.bundle run' does, in chunks", add_help=False
    )
    bundle.set_defaults(run=_bundle, told=(MissingPackage,))
    bundle.add_argument("arguments", nargs=argparse.REMAINDER, help="those of 'python -m monai.bundle', from run on")


class MissingPackage(ImportError):
    """What MONAI's command line needs is not installed."""


def _bundle(options: argparse.Namespace) -> int:
    fire, has_fire = optional_import("fire")
    if not has_fire:
        raise MissingPackage("bundles are run by Fire: pip install fire")
    fire.Fire({"run": run}, command=options.arguments, name="python -m monai_chunked bundle")
    return 0


def run(
    run_id: str | None = None,
    init_id: str | None = None,
    final_id: str | None = None,
    meta_file: str | Sequence[str] | None = None,
    config_file: str | Sequence[str] | None = None,
    logging_file: str | None = None,
    tracking: str | dict[str, Any] | None = None,
    args_file: str | None = None,
    **override: Any,
) -> None:
    """Run a bundle as ``monai.bundle.run`` does, with every SupervisedEvaluator in chunks, and windows of others.

    Args:
        run_id: ID of the expression to run, "run" by default.
        init_id: ID of the expression to run before it, "initialize" by default.
        final_id: ID of the expression to run after it, "finalize" by default.
        meta_file: metadata file, or a list of files that are merged.
        config_file: config file, or a list of files that are merged.
        logging_file: config file of Python's logging.
        tracking: settings of experiment tracking, as "mlflow".
        args_file: a file with default values of these arguments.
        override: IDs and values that override those of the config, as in --net#input_chns 42.
    """
    workflow_name: Any = ChunkedWorkflow
    given = {"init_id": init_id, "run_id": run_id, "final_id": final_id, "tracking": tracking}
    with _told():
        workflow = create_workflow(
            workflow_name,
            config_file=config_file,
            args_file=args_file,
            meta_file=meta_file,
            logging_file=logging_file,
            **given,
            **override,
        )
        workflow.run()
        workflow.finalize()


NOTHING = "no sliding window inferer of MONAI's was called in a way that chunks answer with the same bits"


BY_OTHERS = (
    "the config does not make it by _target_: SupervisedEvaluator; there monai_chunked.ChunkedEvaluator would do"
)


class ChunkedWorkflow(ConfigWorkflow):
    """A bundle whose evaluators work in chunks; those that cannot take their place run with inferers that do."""

    def initialize(self) -> Any:
        """Initialize the bundle."""
        logger.disabled = False  # as a bundle's own logging may leave it
        self.parser.resolve_macro_and_relative_ids()
        for part in _parts(self.parser.config):
            if part["_target_"] in REPLACED:
                part["_target_"] = CHUNKED
        self._told: list[Evaluator] = []
        result = super().initialize()
        self._tell_what_is_left()
        return result

    def run(self) -> Any:
        """Run the bundle."""
        with patch() as patched:  # what it has run is logged at the end
            result = super().run()
        self._tell_what_is_left()
        in_chunks = any(isinstance(evaluator, ChunkedEvaluator) for evaluator in self._evaluators().values())
        if not (patched.tally.calls or in_chunks):
            logger.warning("nothing ran in chunks: %s", NOTHING)
        return result

    def _evaluators(self) -> dict[str, Evaluator]:
        """The evaluators that are made by now, by their ID."""
        made = self.parser.ref_resolver.resolved_content.items()
        return {name.replace("::", "#"): part for name, part in made if isinstance(part, Evaluator)}

    def _tell_what_is_left(self) -> None:
        """Warn of evaluators that could not be replaced in the config, of each once."""
        for name, evaluator in self._evaluators().items():
            if isinstance(evaluator, ChunkedEvaluator) or any(evaluator is told for told in self._told):
                continue
            self._told.append(evaluator)
            kind = type(evaluator)
            why = BY_OTHERS if kind is SupervisedEvaluator else f"it is {kind.__name__}, not SupervisedEvaluator"
            logger.warning("%s: postprocessing left whole: %s", name, why)


def _parts(config: object) -> Iterator[dict[str, Any]]:
    """All parts of a config that make something."""
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str) and isinstance(config, dict):
            yield config
        parts: Iterable[object] = config.values()
    else:
        parts = config if isinstance(config, list) else ()
    for part in parts:
        yield from _parts(part)


@contextmanager
def _told() -> Iterator[None]:
    """Print what evaluators say: what runs in chunks, what stays behind, and what the first image takes."""
    handler = logging.StreamHandler(sys.stdout)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # else a bundle's logging would print it again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
