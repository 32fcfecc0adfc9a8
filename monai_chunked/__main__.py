"""``python -m monai_chunked``: what a run will take, and bundles and programs that run in chunks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from monai_chunked import __version__
from monai_chunked.commands.bundle import add_bundle
from monai_chunked.commands.exec import add_exec
from monai_chunked.commands.plan import add_plan

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m monai_chunked", description=__doc__)
    parser.add_argument("--version", action="version", version=f"monai-chunked {__version__}")
    commands = parser.add_subparsers(required=True)
    add_plan(commands)
    add_bundle(commands)
    add_exec(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except options.told as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
