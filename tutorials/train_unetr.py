"""Train the network of `multi_organ_unetr.ipynb` for longer than fits a tutorial, by the notebook's own cells.

    python -m tutorials.train_unetr

runs the cells that are tagged "training", with `PARAMETERS` instead of those of the notebook, and writes the weights
that the notebook begins with. They have seen phantoms alone and are not for clinical use.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nbformat
import torch

NOTEBOOK = Path(__file__).with_name("multi_organ_unetr.ipynb")
PARAMETERS: dict[str, Any] = {
    "weights": None,
    "train_seeds": range(1, 25),
    "max_iterations": 1200,
    "max_lr": [1e-3, 8e-3],  # of the transformer, of all others
}
"""In the place of what the cell that is tagged "parameters" sets."""


def run_cells(parameters: dict[str, Any]) -> dict[str, Any]:
    """Run the cells of the notebook that train.

    Args:
        parameters: variables that differ from the notebook's.

    Returns:
        All variables of the notebook.
    """
    there: dict[str, Any] = {"__name__": "__main__"}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if "training" in tags:
            exec(compile(cell.source.removeprefix("%%shared\n"), cell.id, "exec"), there)
        if "parameters" in tags:
            there.update(parameters)
    return there


def main() -> None:
    """Train, and write the weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=NOTEBOOK.with_suffix(".pt"), help="of the weights")
    path = parser.parse_args().path
    trained = run_cells(PARAMETERS)
    torch.save({name: values.half() for name, values in trained["model"].state_dict().items()}, path)
    losses = trained["loss_values"]
    print(f"{path}: {len(losses)} iterations, mean loss of the last 50: {sum(losses[-50:]) / len(losses[-50:]):.2f}")


if __name__ == "__main__":
    main()
