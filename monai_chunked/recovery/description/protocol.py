"""What those who describe a value may ask of the describer, for the values in it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
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
    """Describes the values in a value. Their names become the path to what cannot be described."""

    def describe(self, value: Any, name: str = "") -> str:
        """The same text for what computes the same."""
        ...

    def kind(self, cls: type, name: str = "") -> str:
        """The text of the class of an object that exists, so that how it makes objects does not count."""
        ...

    def cannot(self, value: Any, why: str = "") -> str:
        """What is said of a value that cannot be compared; raises unless the user vouches for it."""
        ...

    def each(self, values: Iterable[Any]) -> str:
        """The texts of values that have no names."""
        ...

    def items(self, items: Iterable[tuple[Any, Any]]) -> str:
        """The texts of values and of their names."""
        ...

    def state(self, state: Any) -> str:
        """The text of the attributes of an object, as pickle gets them."""
        ...

    def once(self, value: Any, key: Hashable, of: Callable[[], str], name: str = "") -> str:
        """What ``of`` gives, or a number if the value with this key has been described before or is being described."""
        ...
