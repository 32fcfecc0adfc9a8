"""``python -m monai_chunked plan``: what a run will take, before it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from monai.inferers import SlidingWindowInferer

from monai_chunked.chunk_plan import plan_inferer
from monai_chunked.inferer import ChunkedSlidingWindowInferer

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m monai_chunked", description=__doc__)
    commands = parser.add_subparsers(required=True)
    plan = commands.add_parser("plan", help="print what a run will take, without a network")
    plan.set_defaults(run=_plan)
    plan.add_argument("--image-size", type=int, nargs="+", required=True, help="spatial size of the image in voxels")
    plan.add_argument("--classes", type=int, nargs="+", required=True, help="channels of the network's output(s)")
    plan.add_argument("--images", type=int, default=1, help="number of images in the input batch (default: 1)")
    plan.add_argument("--config-file", help="a bundle's config, to plan for its inferer")
    plan.add_argument("--inferer-id", default="inferer", help="of the inferer in the config (default: inferer)")
    plan.add_argument("--plot", metavar="FILE", help="draw open chunks over the run, for instance plan.png")
    own = plan.add_argument_group("parameters of the inferer, on top of those of the config")
    own.add_argument("--roi-size", type=int, nargs="+")
    own.add_argument("--sw-batch-size", type=int)
    own.add_argument("--overlap", type=float, nargs="+")
    own.add_argument("--buffer-steps", type=int)
    own.add_argument("--buffer-dim", type=int)
    own.add_argument("--chunk-size", type=int, nargs="+")
    own.add_argument("--device-memory", metavar="SIZE", help="for instance 4GB")
    own.add_argument("--cpu-memory", metavar="SIZE", help="for instance 512MiB")
    own.add_argument("--sw-device", help="where the network runs, for instance cuda")
    own.add_argument("--postprocessing", choices=["argmax", "none"], help="(default: argmax, or that of the config)")
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _plan(options: argparse.Namespace) -> int:
    inferer = _inferer(options)
    plan = plan_inferer(inferer, (options.images, 1, *options.image_size), options.classes)
    print(plan)
    if options.plot:
        plan.plot(options.plot)
    return 0


def _inferer(options: argparse.Namespace) -> SlidingWindowInferer:
    names = ["roi_size", "sw_batch_size", "overlap", "buffer_steps", "buffer_dim", "chunk_size"]
    names += ["device_memory", "cpu_memory", "sw_device"]
    given: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in given.items()}
    if options.postprocessing:
        given["postprocessing"] = None if options.postprocessing == "none" else options.postprocessing
    if options.config_file is None:
        if "roi_size" not in given:
            raise ValueError("--roi-size is needed where there is no --config-file")
        return ChunkedSlidingWindowInferer(**{"postprocessing": "argmax", **given})

    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(options.config_file)
    inferer = parser.get_parsed_content(options.inferer_id)
    if not isinstance(inferer, SlidingWindowInferer):
        raise ValueError(f"{options.inferer_id!r} is {type(inferer).__name__}, not a SlidingWindowInferer")
    for name, value in given.items():
        setattr(inferer, name, value)
    return inferer


if __name__ == "__main__":
    sys.exit(main())
