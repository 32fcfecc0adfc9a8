"""Everything that a result depends on, each in two states; a helper of ``test_changed_results.py``.

Each maker gets a folder for files and whether the one thing it is about has changed, and returns the parameters of a
call. Called twice with the same arguments, it makes fresh objects that are alike.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any
from uuid import uuid4

import dask.array
import h5py
import monai.transforms
import nibabel
import numpy as np
import torch
import zarr
from monai.data import MetaTensor
from monai.inferers import SliceInferer

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer, ImageArray, NumpyOutput, open_image
from monai_chunked import chunked_sliding_window_inference as infer

SHAPE = (1, 1, 9, 8, 7)

MAKERS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {}


def maker(function: Callable[[Path, bool], dict[str, Any]]) -> Callable[[Path, bool], dict[str, Any]]:
    MAKERS[function.__name__] = function
    return function


def image(changed: bool = False) -> np.ndarray:
    values = np.random.default_rng(5).random(SHAPE, np.float32)
    values[0, 0, 4, 4, 4] += changed
    return values


def named(values: np.ndarray, **meta: Any) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values), meta={"filename_or_obj": "scan.nii", **meta})


def module(name: str, source: str) -> ModuleType:
    """As a notebook or a script of the user has it."""
    made = ModuleType(name)
    sys.modules[name] = made
    exec(source, vars(made))
    return made


def scaled(values: Any, factor: float) -> Any:
    return values * factor


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, values: Any) -> Any:
        return values * self.factor


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, values: Any) -> Any:
        return self.held(values)


class Network(torch.nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 2, 1)
        torch.nn.init.constant_(self.convolution.weight, 0.5)
        torch.nn.init.constant_(self.convolution.bias, 0.25)
        self.factor = factor

    def forward(self, windows: torch.Tensor, shift: Any = 0.0, condition: Any = None) -> torch.Tensor:
        shift = 0.5 if isinstance(shift, list) else shift  # coordinates
        result = self.convolution(windows) * self.factor + shift
        return result if condition is None else result + condition.mean(1, keepdim=True)


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


def through(transform: Any, values: torch.Tensor) -> Any:
    return transform(values)


@maker
def random_state_of_a_transform(folder: Path, changed: bool) -> dict[str, Any]:
    transform = monai.transforms.RandLambda(functools.partial(scaled, factor=2), prob=1.0)
    return {"postprocessing": functools.partial(through, transform.set_random_state(int(changed)))}


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
def weights(folder: Path, changed: bool) -> dict[str, Any]:
    network = Network()
    torch.nn.init.constant_(network.convolution.bias, 0.25 + changed)
    return {"network": network}


@maker
def plain_attribute_of_a_network(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": Network(1.0 + changed)}


@maker
def attribute_of_a_module_inside(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": torch.nn.Sequential(Network(), torch.nn.LeakyReLU(0.1 + changed))}


class Nested(torch.nn.Module):
    """Has plain attributes that hold others."""

    def __init__(self, changed: bool) -> None:
        super().__init__()
        self.options = {"factors": [1.0, Slots(2.0 + changed)]}

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.options["factors"][1](values)


@maker
def what_an_attribute_of_a_network_holds(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": torch.nn.Sequential(Network(), Nested(changed))}


@maker
def buffer_that_is_not_saved(folder: Path, changed: bool) -> dict[str, Any]:
    class Buffered(Network):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return super().forward(windows) + self.shift

    network = Buffered()
    network.register_buffer("shift", torch.tensor(1.0 + changed), persistent=False)
    return {"network": network}


@maker
def edited_forward(folder: Path, changed: bool) -> dict[str, Any]:
    source = (
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.bias = torch.nn.Parameter(torch.ones(1))\n"
        f"    def forward(self, x):\n        return x * {2 + changed} + self.bias"
    )
    return {"network": module("user_network", source).Net()}


@maker
def edited_forward_of_a_module_inside(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": torch.nn.Sequential(Network(), edited_forward(folder, changed)["network"])}


@maker
def patched_forward(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Conv3d(1, 1, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    source = f"def forward(self, x):\n    return self._conv_forward(x, self.weight, self.bias) * {2 + changed}"
    network.forward = MethodType(module("user_forward", source).forward, network)
    return {"network": network}


@maker
def hook(folder: Path, changed: bool) -> dict[str, Any]:
    network = Network()
    network.register_forward_hook(module("user_hook", f"def hook(m, i, o):\n    return o * {2 + changed}").hook)
    return {"network": network}


@maker
def training(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Sequential(Network(), torch.nn.InstanceNorm3d(2, track_running_stats=True))
    return {"network": network.train(changed)}


@maker
def function_over_a_network(folder: Path, changed: bool) -> dict[str, Any]:
    network = weights(folder, changed)["network"]
    return {"network": lambda windows: network(windows) * 2}


@maker
def scripted_network(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1), torch.nn.LeakyReLU(0.1 + 0.1 * changed))
    torch.nn.init.constant_(network[0].weight, -1)
    torch.nn.init.zeros_(network[0].bias)
    return {"network": torch.jit.trace(network, torch.ones(1, 1, 2, 2, 2))}


@maker
def argument_of_the_network(folder: Path, changed: bool) -> dict[str, Any]:
    return {"args": (1.0 + changed,)}


@maker
def keyword_of_the_network(folder: Path, changed: bool) -> dict[str, Any]:
    return {"kwargs": {"shift": 1.0 + changed}}


@maker
def condition(folder: Path, changed: bool) -> dict[str, Any]:
    return {"kwargs": {"condition": torch.from_numpy(image(changed))}}


@maker
def tensor(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": named(image(changed))}


@maker
def affine(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": named(image(), affine=torch.eye(4) * (1 + changed))}


@maker
def array_in_memory(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": image(changed)}


@maker
def mapped_file(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", image(changed))
    return {"inputs": np.load(folder / "image.npy", mmap_mode="r")}


@maker
def array_over_a_mapped_file(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": np.asarray(mapped_file(folder, changed)["inputs"])[..., ::-1]}


@maker
def other_part_of_a_mapped_file(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", np.concatenate([image(), image(True)]))
    start = int(changed)
    return {"inputs": np.load(folder / "image.npy", mmap_mode="r")[start : start + 1]}


def as_image(array: Any) -> ImageArray:
    """With a name, so that it has the same place in a folder when it changes."""
    return ImageArray(array, range(5), {"filename_or_obj": "scan.nii"})


OPEN: list[h5py.File] = []


def h5py_file(path: Path, **voxels: np.ndarray) -> h5py.File:
    """Written and opened, in the place of one that is open."""
    for file in OPEN:
        file.close()
    with h5py.File(path, "w") as file:
        for name, values in voxels.items():
            file[name] = values
    OPEN[:] = [h5py.File(path)]
    return OPEN[0]


@maker
def h5py_dataset(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": as_image(h5py_file(folder / "image.h5", voxels=image(changed))["voxels"])}


@maker
def other_h5py_dataset(folder: Path, changed: bool) -> dict[str, Any]:
    file = h5py_file(folder / "image.h5", a=image(), b=image(True))
    return {"inputs": as_image(file["b" if changed else "a"])}


@maker
def h5py_without_name(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": h5py_dataset(folder, changed)["inputs"].source}


@maker
def h5py_in_memory(folder: Path, changed: bool) -> dict[str, Any]:
    file = h5py.File(f"in memory {uuid4()}", "w", driver="core", backing_store=False)
    file["voxels"] = image(changed)
    return {"inputs": as_image(file["voxels"])}


@maker
def zarr_array(folder: Path, changed: bool) -> dict[str, Any]:
    values = image(changed)
    zarr.create_array(folder / "image.zarr", name="voxels", data=values, chunks=(1, 1, 4, 4, 4), overwrite=True)
    return {"inputs": as_image(zarr.open_group(folder / "image.zarr", mode="r")["voxels"])}


@maker
def zarr_in_memory(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": as_image(zarr.create_array(zarr.storage.MemoryStore(), data=image(changed)))}


@maker
def dask_over_numpy(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": as_image(dask.array.from_array(image(changed), chunks=(1, 1, 4, 4, 4)))}


@maker
def dask_over_h5py(folder: Path, changed: bool) -> dict[str, Any]:
    dataset = h5py_dataset(folder, changed)["inputs"].source
    return {"inputs": as_image(dask.array.from_array(dataset, chunks=(1, 1, 4, 4, 4), lock=True))}


@maker
def what_dask_does(folder: Path, changed: bool) -> dict[str, Any]:
    array = dask.array.from_array(image(), chunks=(1, 1, 4, 4, 4))
    return {"inputs": as_image((array * (2 + changed)).map_blocks(lambda block: block + np.float32(changed)))}


@maker
def dask_over_files_that_it_reads_itself(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", image(changed))
    delayed = dask.delayed(np.load)(folder / "image.npy")
    return {"inputs": as_image(dask.array.from_delayed(delayed, SHAPE, np.float32))}


@maker
def nifti(folder: Path, changed: bool) -> dict[str, Any]:
    nibabel.save(nibabel.Nifti1Image(image(changed)[0, 0], np.eye(4)), folder / "scan.nii")
    return {"inputs": open_image(folder / "scan.nii")}


@maker
def nifti_gz(folder: Path, changed: bool) -> dict[str, Any]:
    nibabel.save(nibabel.Nifti1Image(image(changed)[0, 0], np.eye(4)), folder / "scan.nii.gz")
    return {"inputs": open_image(folder / "scan.nii.gz")}


@maker
def nifti_dataobj(folder: Path, changed: bool) -> dict[str, Any]:
    nibabel.save(nibabel.Nifti1Image(image(changed), np.eye(4)), folder / "scan.nii")
    return {"inputs": as_image(nibabel.load(folder / "scan.nii").dataobj)}


class OfTheUser:
    """An array that reads what it likes."""

    def __init__(self, path: Path) -> None:
        self.path, self.shape, self.dtype = path, SHAPE, np.dtype(np.float32)
        self.meta = {"filename_or_obj": "scan.nii"}

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.load(self.path)[index]


@maker
def array_of_the_user(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", image(changed))
    return {"inputs": OfTheUser(folder / "image.npy")}


@maker
def open_file_in_a_function(folder: Path, changed: bool) -> dict[str, Any]:
    (folder / "factor").write_text(str(2 + changed))
    file = (folder / "factor").open()
    return {"postprocessing": lambda values: values * float(os.pread(file.fileno(), 10, 0))}


def setting(name: str, before: Any, after: Any) -> None:
    MAKERS[f"setting {name}"] = lambda folder, changed: {name: after if changed else before}


setting("overlap", 0.25, 0.5)
setting("mode", "constant", "gaussian")
setting("cval", 0.0, 1.0)
setting("sw_batch_size", 1, 2)
setting("roi_size", 4, 10)
setting("padding_mode", "constant", "replicate")
setting("with_coord", False, True)
setting("buffer_steps", None, 1)


@maker
def sigma_scale(folder: Path, changed: bool) -> dict[str, Any]:
    return {"mode": "gaussian", "sigma_scale": 0.125 + 0.125 * changed}


@maker
def roi_weight_map(folder: Path, changed: bool) -> dict[str, Any]:
    weights = torch.ones(4, 4, 4)
    weights[0] += changed
    return {"roi_weight_map": weights}


@maker
def process_fn(folder: Path, changed: bool) -> dict[str, Any]:
    factor = 2 + changed
    return {"process_fn": lambda tensors, windows, weights: (tuple(t * factor for t in tensors), weights)}


class Squaring(SliceInferer):
    factor = 1.0

    def network_wrapper(self, network: Any, x: Any, condition: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().network_wrapper(network, x, condition, *args, **kwargs) ** 2


class SquaringSlices(Squaring, ChunkedSliceInferer):
    pass


@maker
def wrapper_of_a_slice_inferer(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    return {"network": network, "inferer": SquaringSlices if changed else ChunkedSliceInferer, "roi_size": (4, 4)}


def call(made: dict[str, Any], folder: Path, **more: Any) -> Any:
    """Of the function or a class, with what is not given as it always is."""
    usual = {"inputs": named(image()), "network": Network(), "roi_size": 4, "sw_batch_size": 1}
    made = {**usual, **made, **more}
    inputs, network, args = made.pop("inputs"), made.pop("network"), made.pop("args", ())
    kwargs, inferer = made.pop("kwargs", {}), made.pop("inferer", None)
    made["output"] = NumpyOutput(folder)
    with torch.no_grad():
        if "roi_weight_map" in made or "process_fn" in made:
            return infer(inputs, predictor=network, **made)
        return (inferer or ChunkedSlidingWindowInferer)(**made)(inputs, network, *args, **kwargs)
