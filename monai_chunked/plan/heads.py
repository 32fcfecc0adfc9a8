"""The tensors that the network returns for one window."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

__all__ = ["Head", "Heads"]


class Head(NamedTuple):
    """One of the tensors that the network returns, as the first batch shows it.

    Attributes:
        name: in messages and file names.
        channels: of a prediction.
        size: spatial size of the prediction of one window in voxels.
    """

    name: str
    channels: int
    size: tuple[int, ...]


@dataclass(frozen=True)
class Heads:
    """All that the network returns, at first nothing.

    Attributes:
        each: the heads.
        keys: their keys where the network returns a dict.
    """

    each: tuple[Head, ...] = ()
    keys: tuple[Hashable, ...] | None = None

    @classmethod
    def of(cls, shapes: Sequence[Sequence[int]], keys: Sequence[Hashable] | None = None) -> Heads:
        """Heads of which the predictions of one window have these shapes, ``(C, *size)``.

        >>> [head.name for head in Heads.of([(2, 8, 8)])]
        ['prediction']
        >>> [head.name for head in Heads.of([(2, 8, 8), (1, 4, 4)])]
        ['prediction-0', 'prediction-1']
        >>> [head.name for head in Heads.of([(2, 8, 8), (1, 4, 4)], ["liver", "spleen"])]
        ['prediction-liver', 'prediction-spleen']
        """
        numbered = [f"prediction-{key}" for key in keys or range(len(shapes))]
        names = numbered if len(shapes) != 1 else ["prediction"]
        heads = (Head(name, channels, tuple(size)) for name, (channels, *size) in zip(names, shapes))
        return cls(tuple(heads), None if keys is None else tuple(keys))

    def __iter__(self) -> Iterator[Head]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, number: int) -> Head:
        return self.each[number]

    def number(self, name: str) -> int:
        """The number of the head with this name."""
        return [head.name for head in self.each].index(name)

    def scaled(self, window: Sequence[int], other: Sequence[int]) -> Heads:
        """The same heads where the window has another size.

        >>> Heads.of([(2, 4, 8)]).scaled(window=(8, 8), other=(6, 8))[0].size
        (3, 8)
        """
        sizes = [tuple(n * new // old for n, old, new in zip(head.size, window, other)) for head in self.each]
        return replace(self, each=tuple(head._replace(size=size) for head, size in zip(self.each, sizes)))

    def match(self, parameter: str, given: Any, numbers: bool = False) -> list[Any]:
        """What was given for each head: one for all, or a tuple or dict with one for each.

        Args:
            parameter: its name.
            given: what the user gave.
            numbers: whether it is a number, or several for the channels of a head; several for a head that is alone
                are one for each of its channels.

        Raises:
            ValueError: when it does not fit the heads.

        >>> Heads.of([(2, 8), (1, 8)], ["liver", "spleen"]).match("postprocessing", {"spleen": None, "liver": "argmax"})
        ['argmax', None]
        """
        if isinstance(given, dict):
            if self.keys is None or set(self.keys) != set(given):
                names = f"{len(self)} output(s) without names" if self.keys is None else f"the outputs {[*self.keys]}"
                asked = list(given) if numbers else sorted(given)
                raise ValueError(f"{parameter} is for the outputs {asked} but the network has {names}")
            return [given[key] for key in self.keys]
        if not isinstance(given, (tuple, list)) or (numbers and len(self) == 1):
            return [given] * len(self)
        if len(given) != len(self):
            what = f"{parameter}={given!r}" if numbers else parameter
            outputs, value = ("outputs", "one number") if numbers else ("output(s)", "one")
            raise ValueError(
                f"{what} has {len(given)} entries but the network has {len(self)} {outputs}; give one for each, or "
                f"{value} for all"
            )
        return list(given)

    def pack(self, results: Sequence[Any]) -> Any:
        """Their results in the structure that MONAI returns: a dict, a tuple, or the only one."""
        if self.keys is not None:
            return dict(zip(self.keys, results))
        return results[0] if len(results) == 1 else tuple(results)
