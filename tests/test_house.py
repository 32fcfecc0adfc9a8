"""`make lint` tells what of the house grows beyond its limit, and which exception is over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import breaches

LIMITS = {
    "entries of a room": 2,
    "lines of a room": 12,
    "floors of a room": 2,
    "lines of a file": 8,
    "lines of a function": 3,
    "positional parameters": 2,
    "classes of one name": 1,
    "files of one name": 1,
}
IN_ORDER = {
    "__init__.py": "",
    "room/__init__.py": "",
    "room/below.py": "def f(self, a, b, *, c):\n    '''Says\n    what.'''\n    return a\n",
    "room/above.py": "from house.room.below import f\n\n\nclass One:\n    pass\n",
    "other/__init__.py": "",
    "other/third.py": "from house.room import above\n",
}
GROWN = {
    "an entry too many": ({"room/more.py": ""}, "room: 3 entries of a room, at most 2"),
    "a room in a room is an entry": ({"room/in/__init__.py": ""}, "room: 3 entries of a room, at most 2"),
    "lines of a room, those of rooms in it too": (
        {"room/in/__init__.py": "#\n" * 4},
        "room: 13 lines of a room, at most 12",
    ),
    "a floor too many": (
        {"room/top.py": "def late():\n    import house.room.above\n"},
        "room: 3 floors of a room, at most 2",
    ),
    "lines of a file": ({"other/third.py": "#\n" * 9}, "other/third.py: 9 lines of a file, at most 8"),
    "lines of a method": (
        {"other/third.py": "class Two:\n    def f(self):\n" + "        1\n" * 3},
        "other/third.py:Two.f: 4 lines of a function, at most 3",
    ),
    "positions": (
        {"other/third.py": "def f(a, b, c): ...\n"},
        "other/third.py:f: 3 positional parameters, at most 2",
    ),
    "a class twice": (
        {"other/third.py": "class One: ...\n"},
        "One: 2 classes of one name, at most 1 (other/third.py, room/above.py)",
    ),
    "a file twice": (
        {"other/below.py": ""},
        "below: 2 files of one name, at most 1 (other/below.py, room/below.py)",
    ),
}


def build(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "house"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_a_house_in_order_is_left_in_peace(tmp_path: Path) -> None:
    assert breaches(build(tmp_path, IN_ORDER), LIMITS, {}) == []


@pytest.mark.parametrize("name", GROWN)
def test_what_grows_beyond_its_limit_is_told(tmp_path: Path, name: str) -> None:
    added, message = GROWN[name]
    assert message in breaches(build(tmp_path, IN_ORDER | added), LIMITS, {})


def test_an_exception_holds_up_to_its_own_limit(tmp_path: Path) -> None:
    def told(lines: int) -> list[str]:
        package = build(tmp_path, IN_ORDER | {"other/third.py": "#\n" * lines})
        because = {"other/third.py": {"at_most": 10, "because": "it is a list"}}
        return breaches(package, LIMITS, {"lines of a file": because})

    assert told(10) == []
    assert told(11) == ["other/third.py: 11 lines of a file, at most 10 as an exception"]
    assert told(8) == ["other/third.py: the exception for lines of a file is not needed"]


def test_an_exception_has_a_reason_and_a_limit_that_there_is(tmp_path: Path) -> None:
    package = build(tmp_path, IN_ORDER | {"other/third.py": "#\n" * 9})
    (told,) = breaches(package, LIMITS, {"lines of a file": {"other/third.py": {"at_most": 9, "because": ""}}})
    assert told == "other/third.py: the exception for lines of a file has no reason"
    told, needless = breaches(package, {**LIMITS, "lines of a file": 9}, {"colour": {"room": {"because": "it is red"}}})
    assert told == "[tool.house] knows no limit of colour"
    assert needless == "room: the exception for colour is not needed"
