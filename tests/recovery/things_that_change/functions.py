"""Functions, objects and modules of the user that a result depends on."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import monai.transforms
import numpy as np
import torch

from tests.recovery.things_that_change.makers import MAKERS, maker, module


def scaled(values: Any, factor: float) -> Any:
    return values * factor


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, values: Any) -> Any:
        return values * self.factor


class Shifted:
    """By a random number, the same for each chunk. MONAI's own random transforms are refused."""

    def __init__(self, seed: int) -> None:
        self.R = np.random.RandomState(seed)

    def __call__(self, values: Any) -> Any:
        shift = np.random.RandomState()
        shift.set_state(self.R.get_state())
        return values + shift.random_sample()


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, values: Any) -> Any:
        return self.held(values)


@maker
def partial_keyword(folder: Path, changed: bool) -> dict[str, Any]:
    return {"postprocessing": functools.partial(scaled, factor=2 + changed)}


@maker
def partial_argument(folder: Path, changed: bool) -> dict[str, Any]:
    return {"preprocessing": functools.partial(torch.add, torch.tensor(2.0 + changed))}


@maker
def partial_in_lambda_transform(folder: Path, changed: bool) -> dict[str, Any]:
    transform = monai.transforms.Lambda(functools.partial(scaled, factor=2 + changed))
    return {"postprocessing": monai.transforms.Compose([transform])}


@maker
def partial_in_objects(folder: Path, changed: bool) -> dict[str, Any]:
    held: Any = functools.partial(scaled, factor=2 + changed)
    for _ in range(12):
        held = Holder(held)
    return {"postprocessing": held}


@maker
def slots(folder: Path, changed: bool) -> dict[str, Any]:
    return {"postprocessing": Slots(2 + changed)}


@maker
def slots_held_by_a_bound_method(folder: Path, changed: bool) -> dict[str, Any]:
    return {"postprocessing": Holder(Slots(2 + changed)).__call__}


@maker
def state_of_a_transform(folder: Path, changed: bool) -> dict[str, Any]:
    return {"postprocessing": monai.transforms.AsDiscrete(threshold=0.4 + 0.2 * changed)}


@maker
def state_of_compose(folder: Path, changed: bool) -> dict[str, Any]:
    steps = [monai.transforms.Activations(softmax=True), monai.transforms.AsDiscrete(threshold=0.4 + 0.2 * changed)]
    return {"postprocessing": monai.transforms.Compose(steps)}


@maker
def random_state_of_a_transform(folder: Path, changed: bool) -> dict[str, Any]:
    return {"postprocessing": Shifted(int(changed))}


@maker
def global_constant(folder: Path, changed: bool) -> dict[str, Any]:
    made = module("user_constant", f"FACTOR = {2 + changed}\ndef post(values):\n    return values * FACTOR")
    return {"postprocessing": made.post}


@maker
def global_constant_in_a_nested_function(folder: Path, changed: bool) -> dict[str, Any]:
    source = f"FACTOR = {2 + changed}\ndef post(values):\n    return [each * FACTOR for each in [values]][0]"
    return {"postprocessing": module("user_nested", source).post}


@maker
def function_that_another_calls(folder: Path, changed: bool) -> dict[str, Any]:
    source = f"def inner(v):\n    return v * {2 + changed}\ndef post(values):\n    return inner(values)"
    return {"postprocessing": module("user_calls", source).post}


@maker
def constant_of_an_imported_module(folder: Path, changed: bool) -> dict[str, Any]:
    module("user_helpers", f"FACTOR = {2 + changed}")
    source = "import user_helpers\ndef post(values):\n    return values * user_helpers.FACTOR"
    return {"postprocessing": module("user_imports", source).post}


@maker
def constant_imported_inside_a_function(folder: Path, changed: bool) -> dict[str, Any]:
    module("user_helpers", f"FACTOR = {2 + changed}")
    source = "def post(values):\n    from user_helpers import FACTOR\n    return values * FACTOR"
    return {"postprocessing": module("user_imports_late", source).post}


@maker
def method_of_a_class(folder: Path, changed: bool) -> dict[str, Any]:
    source = f"class Post:\n    def __call__(self, values):\n        return values * {2 + changed}"
    return {"postprocessing": module("user_class", source).Post()}


@maker
def method_of_a_base_class(folder: Path, changed: bool) -> dict[str, Any]:
    source = (
        f"class Base:\n    factor = {2 + changed}\nclass Post(Base):\n    def __call__(self, v): return v * self.factor"
    )
    return {"postprocessing": module("user_base", source).Post()}


@maker
def closure(folder: Path, changed: bool) -> dict[str, Any]:
    factor = {"of": [2 + changed]}
    return {"postprocessing": lambda values: values * factor["of"][0]}


@maker
def default(folder: Path, changed: bool) -> dict[str, Any]:
    def post(values: Any, factor: float = 2 + changed) -> Any:
        return values * factor

    return {"postprocessing": post}


@maker
def keyword_default(folder: Path, changed: bool) -> dict[str, Any]:
    def post(values: Any, *, factor: float = 2 + changed) -> Any:
        return values * factor

    return {"postprocessing": post}


@maker
def attribute_of_a_function(folder: Path, changed: bool) -> dict[str, Any]:
    source = f"def post(values):\n    return values * post.factor\npost.factor = {2 + changed}"
    return {"postprocessing": module("user_attribute", source).post}


@maker
def set_constant(folder: Path, changed: bool) -> dict[str, Any]:
    source = f"def post(v):\n    return v * (2 if 'c' in {{'a', 'b', {'c' if changed else 'd'!r}}} else 3)"
    return {"postprocessing": module("user_set", source).post}


DECORATED = """
import abc, contextlib, dataclasses, enum, functools, typing, torch

class Kind(enum.Enum):
    FACTOR = {factor}

class Pair(typing.NamedTuple):
    factor: float = {factor}

@dataclasses.dataclass
class Options:
    factors: list = dataclasses.field(default_factory=lambda: [{factor}])

class Base(abc.ABC, typing.Generic[typing.TypeVar("T")]):
    @abc.abstractmethod
    def __call__(self, values): ...

class Property(Base):
    @property
    def factor(self):
        return {factor}

    @functools.cached_property
    def other(self):
        return {factor}

    @staticmethod
    def third():
        return {factor}

    def __call__(self, values):
        return values * (self.{of})

@functools.lru_cache
def cached():
    return {factor}

@contextlib.contextmanager
def context():
    yield {factor}

@torch.no_grad()
def without_gradients(values):
    return values * {factor}

def kind(values): return values * Kind.FACTOR.value
def pair(values): return values * Pair().factor
def options(values): return values * Options().factors[0]
def of_cached(values): return values * cached()
def of_context(values):
    with context() as factor:
        return values * factor
of_property = Property()
"""


def decorated(name: str, what: str, of: str = "factor") -> None:
    def make(folder: Path, changed: bool) -> dict[str, Any]:
        made = module(f"user_{name}", DECORATED.replace("{factor}", str(2 + changed)).replace("{of}", of))
        return {"postprocessing": getattr(made, what)}

    MAKERS[name] = make


decorated("function_that_torch_decorates", "without_gradients")
decorated("function_that_the_standard_library_decorates", "of_context")
decorated("cached_function", "of_cached")
decorated("enum_of_the_user", "kind")
decorated("named_tuple", "pair")
decorated("factory_of_a_dataclass", "options")
decorated("property", "of_property")
decorated("cached_property", "of_property", "other")
decorated("static_method", "of_property", "third()")


@maker
def one_of_several_postprocessings(folder: Path, changed: bool) -> dict[str, Any]:
    return {"postprocessing": (functools.partial(scaled, factor=2 + changed),)}


@maker
def open_file_in_a_function(folder: Path, changed: bool) -> dict[str, Any]:
    (folder / "factor").write_text(str(2 + changed))
    file = (folder / "factor").open()
    return {"postprocessing": lambda values: values * float(os.pread(file.fileno(), 10, 0))}
