"""
``bundle run``: what ``python -m monai.bundle run`` does, with the evaluator that works in chunks.

Arguments, their order of precedence and errors are MONAI's.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from monai.bundle import ConfigWorkflow, create_workflow
from monai.utils import optional_import

__all__ = ["NoEvaluator", "add_bundle"]


CHUNKED = "monai_chunked.ChunkedEvaluator"


REPLACED = ("SupervisedEvaluator", "monai.engines.SupervisedEvaluator", "monai.engines.evaluator.SupervisedEvaluator")
"""What :py:class:`ChunkedEvaluator` takes the place of."""


class NoEvaluator(ValueError):
    """There is nothing in a bundle that could run in chunks."""


def add_bundle(commands: Any) -> None:
    """Add the command to those of a command line.

    Args:
        commands: what ``add_subparsers`` returns.
    """
    bundle = commands.add_parser(
        "bundle", help="run a bundle as 'python -m monai.bundle run' does, in chunks", add_help=False
    )
    bundle.set_defaults(run=_bundle, told=(NoEvaluator, MissingPackage))
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
    """Run a bundle as ``monai.bundle.run`` does, with every SupervisedEvaluator in chunks.

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


class ChunkedWorkflow(ConfigWorkflow):
    """A bundle whose evaluators work in chunks."""

    def initialize(self) -> Any:
        """Initialize the bundle.

        Raises:
            NoEvaluator: when no evaluator in it can work in chunks.
        """
        logging.getLogger("monai_chunked").disabled = False  # as a bundle's own logging may leave it
        self.parser.resolve_macro_and_relative_ids()
        targets = list(_targets(self.parser.config))
        for part, _ in targets:
            if part["_target_"] in REPLACED:
                part["_target_"] = CHUNKED
        if not any(part["_target_"] == CHUNKED for part, _ in targets):
            others = [f"{part['_target_']} as {name!r}" for part, name in targets if "Evaluator" in part["_target_"]]
            found = f"it has {', '.join(others)}" if others else "it has no evaluator"
            raise NoEvaluator(
                f"the config has no _target_: SupervisedEvaluator that could run in chunks; {found}; "
                f"python -m monai.bundle run runs it as it is"
            )
        return super().initialize()


def _targets(config: Any, name: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """All parts of a config that make something, with their ID."""
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str) and isinstance(config, dict):
            yield config, name
        parts: Any = config.items()
    else:
        parts = enumerate(config) if isinstance(config, list) else ()
    for key, value in parts:
        yield from _targets(value, f"{name}#{key}" if name else str(key))


@contextmanager
def _told() -> Iterator[None]:
    """Print what evaluators say: what runs in chunks, what stays behind, and what the first image takes."""
    logger = logging.getLogger("monai_chunked")
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
