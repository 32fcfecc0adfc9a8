"""Who describes a value asks back for what that holds: what the two sides of this conversation may count on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

__all__ = ["Describes", "Undescribable"]


class Undescribable(Exception):
    """Something has no value that can be kept and compared.

    Args:
        path: where it is.
        what: it is.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}")


class Describes(Protocol):
    """Asks what a value is, and is asked for what it holds. Names become the path to what cannot be described."""

    def describe(self, value: Any, name: str = "") -> str:
        """The same text for what computes the same."""
        ...

    def kind(self, cls: type, name: str = "") -> str:
        """Of the class of an object that is there: how it was made does not count."""
        ...

    def cannot(self, value: Any, why: str = "") -> str:
        """It has no value that could be compared."""
        ...

    def each(self, values: Iterable[Any]) -> str:
        """Of values that have no names."""
        ...

    def items(self, items: Iterable[tuple[Any, Any]]) -> str:
        """Of values with the names that they have."""
        ...

    def state(self, state: Any) -> str:
        """Of the attributes of an object, as pickle gets them."""
        ...

    def once(self, value: Any, key: Any, of: Callable[[], str], name: str = "") -> str:
        """What ``of`` gives; a number, if what has this key has been described before or is being described."""
        ...
