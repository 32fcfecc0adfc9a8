"""The tutorials run from top to bottom, and say what their committed outputs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests import ROOT

TUTORIALS = ROOT / "tutorials"
MEASURED = ("MiB over the start", "mean Dice", "Dice of a phantom")
"""Lines with these words hold what differs from one machine to another."""


def lines(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = [output.get("text", "") for output in outputs if output.get("name") != "stderr"]  # warnings of others
    return [line for line in "".join(printed).splitlines() if not any(words in line for words in MEASURED)]


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_tutorial_runs_and_prints_what_it_shows(path: Path) -> None:
    shown = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    NotebookClient(run, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(TUTORIALS)}}).execute()
    assert lines(run) == lines(shown)
    assert any("image/png" in output.get("data", {}) for cell in shown.cells for output in cell.get("outputs", []))
