"""The README shows what its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from monai_chunked.__main__ import main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SHOWN = re.findall(r"    \$ python -m monai_chunked (.*)\n((?:    [^$].*\n)+)", README)


def test_plans_are_shown() -> None:
    assert len(SHOWN) == 2


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_a_plan_is_shown_as_it_is_printed(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert ["    " + line for line in capsys.readouterr().out.splitlines()] == shown.splitlines()
