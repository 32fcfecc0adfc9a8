"""``plan``: what a run will take, before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.utils import optional_import

from monai_chunked.api.inferer import ChunkedSlidingWindowInferer
from monai_chunked.call.bill import plan_inferer
from monai_chunked.inputs.open_image import open_image

__all__ = ["add_plan"]


NETWORKS = ("network_def", "network", "net")
"""What bundles call their network."""


CLASSES = ("out_channels", "num_classes")
"""What networks call the number of channels that they return."""


INSTEAD = "give its parameters instead of --config-file, as in --roi-size 128 128 128 --overlap 0.25 --classes 3"
"""What to do with an inferer that cannot be asked."""


def add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of a command line.

    Args:
        commands: what ``add_subparsers`` returns.
    """
    plan = commands.add_parser("plan", help="print what a run will take, without a network")
    plan.set_defaults(run=_plan, told=(ValueError, TypeError, OSError, ImportError))
    plan.add_argument("--image-size", type=int, nargs="+", required=True, help="spatial size of the image in voxels")
    plan.add_argument(
        "--classes", type=int, nargs="+", help="channels of the network's output(s) (default: of the config's network)"
    )
    plan.add_argument("--images", type=int, default=1, help="number of images in the input batch (default: 1)")
    plan.add_argument("--workers", type=int, help="how many share the volume, to learn what each part of it takes")
    plan.add_argument("--config-file", help="a bundle's config, to plan for its inferer")
    plan.add_argument("--inferer-id", default="inferer", help="of the inferer in the config (default: inferer)")
    plan.add_argument("--plot", metavar="FILE", help="draw open chunks over the run, for instance plan.png")
    own = plan.add_argument_group("parameters of the inferer, on top of those of the config")
    own.add_argument("--roi-size", type=int, nargs="+")
    own.add_argument("--sw-batch-size", type=int)
    own.add_argument("--overlap", type=float, nargs="+")
    own.add_argument("--buffer-steps", type=int)
    own.add_argument("--buffer-dim", type=int)
    own.add_argument("--mode", help="for instance gaussian, or crop")
    own.add_argument("--border", nargs="+", help="edge, even, squeeze, adaptive or crop, for each dimension or all")
    own.add_argument("--min-size", type=int, nargs="+", help="of windows that are cut")
    own.add_argument("--mirror-axes", type=int, nargs="+", help="for instance 0 1 2")
    own.add_argument("--chunk-size", type=int, nargs="+")
    own.add_argument("--mask", metavar="FILE", help="an image; windows in which all of it is zero are skipped")
    own.add_argument("--device-memory", metavar="SIZE", help="for instance 4GB")
    own.add_argument("--cpu-memory", metavar="SIZE", help="for instance 512MiB")
    own.add_argument("--sw-device", help="where the network runs, for instance cuda")
    own.add_argument("--postprocessing", choices=["argmax", "none"], help="(default: argmax, or that of the config)")


def _plan(options: argparse.Namespace) -> int:
    config = None if options.config_file is None else _config(options.config_file)
    inferer = _inferer(options, config)
    shape = (options.images, 1, *options.image_size)
    plan = plan_inferer(inferer, shape, options.classes or _classes(config), workers=options.workers)
    print(plan)
    if options.plot:
        plan.plot(options.plot)
    return 0


def _inferer(options: argparse.Namespace, config: ConfigParser | None) -> SlidingWindowInferer:
    names = ["roi_size", "sw_batch_size", "overlap", "buffer_steps", "buffer_dim", "chunk_size"]
    names += ["device_memory", "cpu_memory", "sw_device", "mode", "border", "min_size", "mirror_axes"]
    given: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in given.items()}
    if options.mask is not None:
        given["mask"] = open_image(options.mask)
    if options.postprocessing:
        given["postprocessing"] = None if options.postprocessing == "none" else options.postprocessing
    if config is None:
        if "roi_size" not in given:
            raise ValueError("--roi-size is needed where there is no --config-file")
        return ChunkedSlidingWindowInferer(**{"postprocessing": "argmax", **given})

    inferer = _parsed(config, options.inferer_id)
    if not isinstance(inferer, SlidingWindowInferer):
        raise ValueError(_advice(config, options.inferer_id, inferer))
    for name, value in given.items():
        setattr(inferer, name, value)
    return inferer


def _config(path: str) -> ConfigParser:
    """A parser that has read a bundle's config."""
    errors: tuple[type[Exception], ...] = (ValueError,)
    if not path.endswith(".json"):
        yaml, has_yaml = optional_import("yaml")
        if not has_yaml:
            raise ImportError(f"reading {path} needs PyYAML: pip install pyyaml")
        errors = (ValueError, yaml.YAMLError)
    config = ConfigParser()
    try:
        config.read_config(path)
    except errors as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return config


def _parsed(config: ConfigParser, name: str) -> Any:
    if name not in config:
        ids = ", ".join(key for key in config.get() if key != "_meta_")
        raise ValueError(f"--inferer-id {name} is not in the config, which has {ids}")
    try:
        return config.get_parsed_content(name)
    except (KeyError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{name!r} of the config cannot be made ({reason}); {INSTEAD}") from error


def _classes(config: ConfigParser | None) -> list[int]:
    """How many the network returns, without making it."""
    for part in (f"{network}#{name}" for network in NETWORKS for name in CLASSES):
        if config is not None and part in config:
            return [int(_parsed(config, part))]
    where = (
        "where there is no --config-file" if config is None else f"here: no {' or '.join(NETWORKS)} says out_channels"
    )
    raise ValueError(f"--classes is needed {where}")


def _advice(config: ConfigParser, name: str, inferer: object) -> str:
    """What to do with an inferer that is no sliding window inferer itself."""
    said = f"{name!r} is {type(inferer).__name__}, not a SlidingWindowInferer"
    inside = [
        part for part in _inside(config.get(name), name) if isinstance(_parsed(config, part), SlidingWindowInferer)
    ]
    if inside:
        return f"{said}, but it holds one: --inferer-id {inside[0]} plans for it"
    held = [key for key, value in vars(inferer).items() if isinstance(value, SlidingWindowInferer)]
    told = f", but it holds one as {held[0]!r}" if held else ""
    return f"{said}{told}; {INSTEAD}"


def _inside(config: object, name: str) -> Iterator[str]:
    """Ids of all that a part of the config makes or refers to."""
    if isinstance(config, Mapping):
        parts: Iterable[tuple[Any, Any]] = config.items()
    else:
        parts = enumerate(config) if isinstance(config, list) else ()
    for key, value in parts:
        if isinstance(value, Mapping) and "_target_" in value:
            yield f"{name}#{key}"
        elif isinstance(value, str) and value.startswith("@"):
            yield value[1:]
        yield from _inside(value, f"{name}#{key}")
