"""What a network, its inputs and what stands behind the inferer see: the same as with MONAI's inferer in its place."""

from __future__ import annotations

import copy
import inspect
import pickle
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer, sliding_window_inference
from monai.transforms import (
    Activations,
    AsDiscrete,
    Compose,
    Flipd,
    Invertd,
    Orientationd,
    Spacingd,
)

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer, chunked_sliding_window_inference

SETTINGS: dict[str, Any] = {"roi_size": (6, 5, 4), "overlap": 0.5, "mode": "gaussian"}
SIZE = (9, 8, 7)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with more, and much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def grad(request: pytest.FixtureRequest) -> Iterator[None]:
    """Inference runs without gradients unless a test asks for them."""
    with torch.set_grad_enabled(getattr(request, "param", False)):
        yield


with_gradients = pytest.mark.parametrize("grad", [pytest.param(True, id="gradients")], indirect=True)
with_and_without_gradients = pytest.mark.parametrize("grad", [True, False], ids=["gradients", "none"], indirect=True)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def volume(images: int = 2, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return random(images, channels, *SIZE, seed=seed)


def scores(windows: torch.Tensor, classes: int = 3) -> torch.Tensor:
    """Some function of the windows whose result is memory of its own."""
    k = torch.arange(1, classes + 1).reshape(-1, *[1] * (windows.dim() - 2)).to(windows)
    return torch.sigmoid(windows[:, :1] * k)


def infer(inputs: torch.Tensor, network: Callable[..., Any], *args: Any, call: Any = None, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, network, *args, **(call or {}))


def monai(inputs: torch.Tensor, network: Callable[..., Any], *args: Any, call: Any = None, **parameters: Any) -> Any:
    return SlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, network, *args, **(call or {}))


def assert_same(ours: Any, reference: Any) -> None:
    """The same structure, keys in the same order, and the same bits."""
    assert isinstance(ours, type(reference))  # labels are tensors that know what they are
    if isinstance(reference, dict):
        assert list(ours) == list(reference)
        ours, reference = tuple(ours.values()), tuple(reference.values())
    if isinstance(reference, tuple):
        assert len(ours) == len(reference)
        for one, other in zip(ours, reference):
            assert_same(one, other)
        return
    assert ours.dtype == reference.dtype
    assert torch.equal(ours, reference)


needs_condition = pytest.mark.skipif(
    "condition" not in inspect.signature(SliceInferer.network_wrapper).parameters, reason="MONAI has no condition"
)


class Recorder:
    """Keeps a copy of all that a network is called with, in order."""

    def __init__(self, network: Callable[[torch.Tensor], Any] = scores) -> None:
        self.network = network
        self.windows: list[torch.Tensor] = []
        self.args: list[tuple[Any, ...]] = []
        self.kwargs: list[dict[str, Any]] = []

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.windows.append(windows.clone())
        self.args.append(args)
        self.kwargs.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
        return self.network(windows)


def assert_same_calls(ours: Recorder, reference: Recorder) -> None:
    assert len(ours.windows) == len(reference.windows) > 0
    for one, other in zip(ours.windows, reference.windows):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert ours.args == reference.args
    for one, other in zip(ours.kwargs, reference.kwargs):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert torch.equal(one[key], value) if isinstance(value, torch.Tensor) else one[key] == value


# ---------------------------------------------------------------- signatures


def positional(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (ChunkedSlidingWindowInferer.__init__, SlidingWindowInferer.__init__),
        (ChunkedSlidingWindowInferer.__call__, SlidingWindowInferer.__call__),
        (ChunkedSliceInferer.__init__, SliceInferer.__init__),
        (ChunkedSliceInferer.__call__, SliceInferer.__call__),
        (chunked_sliding_window_inference, sliding_window_inference),
    ],
    ids=lambda function: function.__qualname__,
)
def test_every_parameter_of_monai_has_the_same_name_position_and_default(ours: Any, reference: Any) -> None:
    assert positional(ours) == positional(reference)


def added(entry: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(entry).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def test_what_we_add_is_keyword_only_has_a_default_and_is_the_same_for_class_and_function() -> None:
    ours = added(ChunkedSlidingWindowInferer)
    assert ours == added(chunked_sliding_window_inference)
    assert inspect.Parameter.empty not in ours.values()
    assert ours.items() >= {"chunk_size": None, "postprocessing": None, "output": "auto", "output_dir": None}.items()


def test_checks_for_monais_classes_hold() -> None:
    inferer, slices = ChunkedSlidingWindowInferer(8), ChunkedSliceInferer(0, (8, 8))
    assert isinstance(inferer, SlidingWindowInferer)
    assert isinstance(inferer, Inferer)
    for kind in (SliceInferer, SlidingWindowInferer, ChunkedSlidingWindowInferer, Inferer):
        assert isinstance(slices, kind)


def test_the_inferer_has_the_attributes_of_monais() -> None:
    parameters = {**SETTINGS, "cache_roi_weight_map": True, "cpu_thresh": 5, "buffer_steps": 2, "with_coord": True}
    ours, reference = vars(ChunkedSlidingWindowInferer(**parameters)), vars(SlidingWindowInferer(**parameters))
    assert torch.equal(ours.pop("roi_weight_map"), reference.pop("roi_weight_map"))
    assert {key: ours[key] for key in reference} == reference


# ---------------------------------------------------------------- the structure of predictions

STRUCTURES: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": scores,
    "tuple": lambda w: (scores(w), w.sin()),
    "list": lambda w: [scores(w), w.sin(), w.cos()],
    "list of one": lambda w: [scores(w)],
    "tuple of one": lambda w: (scores(w),),
    "dict": lambda w: {"a": scores(w), "b": w.sin()},
    "dict in another order": lambda w: {"z": scores(w), "b": w.sin(), "m": w.cos()},
    "dict of one": lambda w: {"scores": scores(w)},
    "dict with numbers for keys": lambda w: {10: scores(w), 9: w.sin()},
    "ordered dict": lambda w: OrderedDict(z=scores(w), b=w.sin()),
    "tuple for keys": lambda w: {("a", 2): scores(w), ("a", 1): w.sin()},
    "other channels": lambda w: (scores(w, 1), scores(w, 5)),
    "half the size": lambda w: scores(w)[..., ::2].contiguous(),
    "twice the size": lambda w: scores(w).repeat_interleave(2, dim=2),
    "both at once": lambda w: scores(w)[..., ::2].repeat_interleave(3, dim=3),
    "mixed sizes in a tuple": lambda w: (scores(w), w.sin()[:, :, ::2, ::2, ::2].contiguous()),
    "mixed sizes in a dict": lambda w: {"full": scores(w), "half": w.sin()[:, :, ::2].contiguous()},
}


@with_and_without_gradients
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, (3, 4, 5)], ids=str)
def test_predictions_of_any_structure_come_back_as_from_monai(
    structure: str, sw_batch_size: int, chunk_size: Any
) -> None:
    network = STRUCTURES[structure]
    parameters: dict[str, Any] = {"roi_size": 4, "sw_batch_size": sw_batch_size}
    inputs = random(2, 1, 6, 8, 4)
    reference = monai(inputs, network, **parameters)
    assert_same(infer(inputs, network, **parameters, chunk_size=chunk_size), reference)


@with_and_without_gradients
def test_outputs_that_share_memory_are_each_as_if_they_did_not() -> None:
    def shared(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = scores(windows)
        return result, result, result[:, 1:]

    def separate(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return scores(windows), scores(windows), scores(windows)[:, 1:].clone()

    assert_same(infer(volume(), shared), monai(volume(), separate))


@pytest.mark.parametrize(
    "layout",
    [lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1), lambda t: t.flip(-1).flip(-1), lambda t: t[:, :1]],
    ids=["channels last", "copied", "sliced"],
)
def test_predictions_of_any_layout_are_added_as_monai_adds_them(layout: Callable[[torch.Tensor], Any]) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return layout(scores(windows))

    assert_same(infer(volume(), network, sw_batch_size=2), monai(volume(), network, sw_batch_size=2))


@with_and_without_gradients
def test_predictions_that_monai_cannot_scale_in_place_are_blended_all_the_same() -> None:
    """Expanded ones, integers, and those of a network that always runs in inference mode."""
    networks: list[tuple[Callable[[torch.Tensor], Any], Callable[[torch.Tensor], Any]]] = [
        (lambda w: w.sin().expand(-1, 4, -1, -1, -1), lambda w: w.sin().repeat(1, 4, 1, 1, 1)),
        (lambda w: (w > 0).long(), lambda w: (w > 0).float()),
        (lambda w: w > 0, lambda w: (w > 0).float()),
        (torch.inference_mode()(lambda w: w.sin()), lambda w: w.sin()),
    ]
    for network, equivalent in networks:
        assert_same(infer(volume(), network), monai(volume(), equivalent))


# ---------------------------------------------------------------- postprocessing


@pytest.mark.parametrize("chunk_size", [None, (2, 3, 7), 1], ids=str)
def test_argmax_is_that_of_torch_on_monais_scores_the_first_of_several_included(chunk_size: Any) -> None:
    def coarse(windows: torch.Tensor) -> torch.Tensor:
        """Three values for five classes: nearly every voxel has several highest ones."""
        return torch.stack([(windows[:, 0] * k).sin().round() for k in (1, 2, 3, 5, 1)], 1)

    reference = monai(volume(), coarse)
    ties = (reference == reference.amax(1, keepdim=True)).sum(1) > 1
    assert ties.float().mean() > 0.2
    labels = infer(volume(), coarse, postprocessing="argmax", chunk_size=chunk_size)
    assert labels.shape == (2, 1, *SIZE)
    assert torch.equal(labels.long(), torch.argmax(reference, 1, keepdim=True))


def test_argmax_of_scores_that_are_infinite_or_no_number_is_that_of_torch() -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        result = scores(windows, 5)
        result[:, 3:4][windows > 1] = torch.nan
        result[:, 1:2][windows > 1.5] = torch.nan
        result[:, 2:3][windows < -1] = torch.inf
        result[(windows > 0.2).logical_and(windows < 0.4).expand_as(result)] = -torch.inf
        return result

    reference = monai(volume(), network)
    assert reference.isnan().any()
    assert reference.isinf().any()
    labels = infer(volume(), network, postprocessing="argmax")
    assert torch.equal(labels.long(), torch.argmax(reference, 1, keepdim=True))


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(1, torch.uint8), (2, torch.uint8), (256, torch.uint8), (257, torch.uint16)],
)
def test_argmax_gives_one_channel_of_the_smallest_unsigned_type_that_holds_the_classes(
    classes: int, dtype: torch.dtype
) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows.new_zeros(len(windows), classes - 1, *windows.shape[2:]), windows], 1)

    labels = infer(volume(1), network, postprocessing="argmax")
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), monai(volume(1), network).argmax(1, keepdim=True))
    assert labels.long().max() == classes - 1


TRANSFORMS: dict[str, tuple[Callable[[torch.Tensor], Any], bool]] = {
    "softmax": (Activations(softmax=True), False),
    "sigmoid": (Activations(sigmoid=True), False),
    "argmax": (AsDiscrete(argmax=True), True),
    "one hot": (AsDiscrete(argmax=True, to_onehot=3), True),
    "threshold": (AsDiscrete(threshold=0.5), True),
    "softmax, then argmax": (Compose([Activations(softmax=True), AsDiscrete(argmax=True)]), True),
    "function": (lambda chunk: chunk[1:] - chunk[:1], True),
    "in place": (lambda chunk: chunk.mul_(2).sub_(1), True),
    "none": (lambda chunk: chunk, True),
}


@with_and_without_gradients
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("meta", [False, True], ids=["tensor", "MetaTensor"])
@pytest.mark.parametrize("output", ["cpu", "disk"])
def test_a_transform_of_each_chunk_is_the_transform_of_monais_whole(transform: str, meta: bool, output: str) -> None:
    postprocessing, exact = TRANSFORMS[transform]
    inputs = MetaTensor(volume()) if meta else volume()
    ours = infer(inputs, scores, postprocessing=postprocessing, output=output, chunk_size=4)
    reference = torch.stack([postprocessing(image) for image in monai(volume(), scores)])
    assert isinstance(ours, MetaTensor) == meta
    assert ours.dtype == reference.dtype
    if exact:
        assert torch.equal(torch.as_tensor(ours), reference)
    else:  # how PyTorch vectorises an exponential depends on how much is contiguous
        assert torch.allclose(torch.as_tensor(ours), reference, rtol=1e-6, atol=1e-7)


def test_postprocessing_sees_every_finished_chunk_once_and_all_of_its_voxels() -> None:
    shapes: Counter[tuple[int, ...]] = Counter()
    total = torch.zeros((), dtype=torch.float64)

    def postprocessing(chunk: torch.Tensor) -> torch.Tensor:
        shapes[tuple(chunk.shape)] += 1
        total.add_(chunk.double().sum())
        return chunk

    infer(volume(), scores, postprocessing=postprocessing, chunk_size=(4, 8, 3))
    # 9 = 4 + 4 + 1, 8 = 8, 7 = 3 + 3 + 1, in each of two images
    assert shapes == {(3, 4, 8, 3): 8, (3, 4, 8, 1): 4, (3, 1, 8, 3): 4, (3, 1, 8, 1): 2}
    assert total.item() == pytest.approx(monai(volume(), scores).double().sum().item(), rel=1e-12)


def test_several_outputs_share_one_postprocessing_or_have_one_each() -> None:
    def in_tuple(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return scores(windows), scores(-windows)

    def in_dict(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"second": scores(-windows), "first": scores(windows)}

    first, second = monai(volume(), in_tuple)
    labels = first.argmax(1, keepdim=True).to(torch.uint8), second.argmax(1, keepdim=True).to(torch.uint8)
    assert_same(infer(volume(), in_tuple, postprocessing="argmax"), labels)
    assert_same(infer(volume(), in_tuple, postprocessing=("argmax", None)), (labels[0], second))
    assert_same(infer(volume(), in_tuple, postprocessing=[None, "argmax"]), (first, labels[1]))
    assert_same(infer(volume(), in_dict, postprocessing="argmax"), {"first": labels[0], "second": labels[1]})
    each = {"second": torch.neg, "first": "argmax"}
    assert_same(infer(volume(), in_dict, postprocessing=each), {"first": labels[0], "second": -second})


# ---------------------------------------------------------------- MetaTensor

OUTPUTS: dict[str, dict[str, Any]] = {
    "memory": {"output": "cpu"},
    "disk": {"output": "disk"},
    "labels in memory": {"postprocessing": "argmax"},
    "labels on disk": {"postprocessing": "argmax", "output": "disk"},
}


PREPROCESSING = Compose(
    [
        Orientationd("image", axcodes="PLS", labels=None),
        Spacingd("image", pixdim=(1.5, 1.0, 2.0)),
        Flipd("image", spatial_axis=1),
    ]
)


def preprocessed(images: int = 2) -> dict[str, MetaTensor]:
    affine = np.diag([-1.0, 2.0, 1.5, 1.0])
    affine[:3, 3] = 11, -7, 3
    samples = [
        {"image": MetaTensor(random(1, 11, 9, 12, seed=seed), affine=affine, meta={"subject": str(seed)})}
        for seed in range(images)
    ]
    return list_data_collate([PREPROCESSING(sample) for sample in samples])


def inverted(batch: dict[str, MetaTensor], prediction: torch.Tensor) -> list[MetaTensor]:
    invert = Invertd("pred", transform=PREPROCESSING, orig_keys="image", nearest_interp=True, to_tensor=True)
    return [invert(sample)["pred"] for sample in decollate_batch({"image": batch["image"], "pred": prediction})]


def assert_same_metadata(ours: MetaTensor, reference: MetaTensor) -> None:
    assert isinstance(ours, MetaTensor)
    assert type(reference) is MetaTensor
    assert ours.is_batch == reference.is_batch
    assert ours.meta.keys() - {"holds_labels"} == reference.meta.keys()
    for key, value in reference.meta.items():
        if isinstance(value, (torch.Tensor, np.ndarray)):
            assert torch.equal(torch.as_tensor(ours.meta[key]), torch.as_tensor(value)), key
        else:
            assert ours.meta[key] == value, key
    assert repr(ours.applied_operations) == repr(reference.applied_operations)
    assert ours.affine.dtype == reference.affine.dtype
    assert torch.equal(ours.affine, reference.affine)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("images", [1, 2])
def test_a_metatensor_comes_back_with_the_metadata_and_applied_operations_of_monais(output: str, images: int) -> None:
    batch = preprocessed(images)["image"]
    ours, reference = infer(batch, scores, **OUTPUTS[output]), monai(batch, scores)
    assert len(reference.applied_operations) > 0
    assert_same_metadata(ours, reference)
    expected = reference.as_tensor()
    if "labels" in output:
        expected = expected.argmax(1, keepdim=True).to(torch.uint8)
    assert ours.dtype == expected.dtype
    assert torch.equal(ours.as_tensor(), expected)


@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_several_metatensors_come_back_with_the_metadata_of_monais(structure: str) -> None:
    batch = preprocessed()["image"]
    network = STRUCTURES[structure]
    ours, reference = infer(batch, network), monai(batch, network)
    if isinstance(reference, Mapping):
        assert list(ours) == list(reference)
        ours, reference = tuple(ours.values()), tuple(reference.values())
    for one, other in zip(ours, reference):
        assert_same_metadata(one, other)
        assert torch.equal(one.as_tensor(), other.as_tensor())


@pytest.mark.parametrize("output", OUTPUTS)
def test_invertd_works_behind_a_metatensor_as_behind_monais(output: str) -> None:
    batch = preprocessed()
    ours = inverted(batch, infer(batch["image"], scores, **OUTPUTS[output]))
    reference = monai(batch["image"], scores)
    if "labels" in output:
        labels = [AsDiscrete(argmax=True)(image) for image in reference]
        reference = torch.stack(labels).to(torch.uint8)
    expected = inverted(batch, reference)
    assert len(ours) == len(expected) == 2
    for one, other in zip(ours, expected):
        assert one.shape[1:] == (11, 9, 12)
        assert_same_metadata(one, other)
        assert one.dtype == other.dtype
        assert torch.equal(one.as_tensor(), other.as_tensor())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8])
def test_a_metatensor_of_any_dtype_gives_monais_dtype(dtype: torch.dtype) -> None:
    inputs = MetaTensor((volume() * 10).abs().to(dtype))
    reference = monai(inputs if dtype.is_floating_point else inputs.float(), lambda w: scores(w.float()).to(w.dtype))
    ours = infer(inputs, lambda w: scores(w.float()))
    assert ours.dtype == reference.dtype


# ---------------------------------------------------------------- what reaches the network


@pytest.mark.parametrize("sw_batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("chunk_size", [None, 4], ids=str)
def test_each_window_is_predicted_exactly_once_in_monais_order_and_batches(sw_batch_size: int, chunk_size: Any) -> None:
    inputs = torch.arange(2.0 * 9 * 8 * 7).reshape(2, 1, *SIZE)  # tells every window from every other
    ours, reference = Recorder(), Recorder()
    assert_same(
        infer(inputs, ours, sw_batch_size=sw_batch_size, chunk_size=chunk_size),
        monai(inputs, reference, sw_batch_size=sw_batch_size),
    )
    assert_same_calls(ours, reference)
    firsts = [int(window.flatten()[0]) for batch in ours.windows for window in batch]
    assert len(set(firsts)) == len(firsts) == 2 * (2 * 3 * 3)
    if sw_batch_size == 100:
        assert len(ours.windows) == 1  # one batch runs over from one image to the next


@pytest.mark.parametrize("padding_mode", ["constant", "replicate", "reflect", "circular"])
def test_windows_larger_than_the_image_are_padded_as_by_monai(padding_mode: str) -> None:
    parameters = {"roi_size": (12, 5, 9), "padding_mode": padding_mode}
    if padding_mode == "constant":
        parameters["cval"] = 7.0
    ours, reference = Recorder(), Recorder()
    assert_same(infer(volume(), ours, **parameters), monai(volume(), reference, **parameters))
    assert_same_calls(ours, reference)


class Stateful(torch.nn.Module):
    """Every call is answered differently."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return windows * self.calls


RANDOM: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
    "counting": Stateful,
    "noise": lambda: lambda windows: windows + torch.rand_like(windows),
    "dropout": lambda: torch.nn.Dropout(0.5).train(),
    "batch norm in training": lambda: torch.nn.BatchNorm3d(1, momentum=0.3).train(),
}


@with_and_without_gradients
@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 3], ids=str)
def test_a_network_with_a_state_or_random_numbers_answers_as_under_monai(
    kind: str, sw_batch_size: int, chunk_size: Any
) -> None:
    results, states = [], []
    for run, more in ((infer, {"chunk_size": chunk_size}), (monai, {})):
        torch.manual_seed(7)
        network = RANDOM[kind]()
        results.append(run(volume(), network, sw_batch_size=sw_batch_size, **more))
        states.append([torch.rand(1), *(network.state_dict().values() if hasattr(network, "state_dict") else [])])
    assert torch.equal(*results)
    for one, other in zip(*states):
        assert torch.equal(one, other)


@needs_condition
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_windows_of_a_condition_reach_the_network_beside_those_of_the_input(sw_batch_size: int) -> None:
    def network(windows: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return scores(windows) + condition

    parameters: dict[str, Any] = {"sw_batch_size": sw_batch_size, "call": {"condition": volume(seed=1)}}
    ours, reference = Recorder(), Recorder()
    infer(volume(), ours, **parameters)
    monai(volume(), reference, **parameters)
    assert_same_calls(ours, reference)
    assert all(kwargs.keys() == {"condition"} for kwargs in ours.kwargs)
    assert_same(infer(volume(), network, **parameters), monai(volume(), network, **parameters))


@needs_condition
def test_a_condition_is_padded_like_the_input() -> None:
    parameters: dict[str, Any] = {
        "roi_size": 10,
        "padding_mode": "reflect",
        "call": {"condition": volume(seed=1)},
    }
    ours, reference = Recorder(), Recorder()
    infer(volume(), ours, **parameters)
    monai(volume(), reference, **parameters)
    assert_same_calls(ours, reference)


@needs_condition
@pytest.mark.parametrize("how", ["class", "function", "slices"])
def test_no_condition_is_no_argument_of_the_network_as_with_monai(how: str) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return windows.sin()

    if how == "class":
        ours, reference = infer(volume(), network, call={"condition": None}), monai(volume(), network)
    elif how == "function":
        ours = chunked_sliding_window_inference(volume(), 4, 1, network, condition=None)
        reference = sliding_window_inference(volume(), 4, 1, network, condition=None)
    else:
        ours = ChunkedSliceInferer(1, (4, 5))(volume(), network, condition=None)
        reference = SliceInferer(1, (4, 5))(volume(), network, condition=None)
    assert_same(ours, reference)


def test_further_arguments_reach_the_network_also_those_named_like_a_parameter_of_ours() -> None:
    extra: dict[str, Any] = {"gain": 2, **dict.fromkeys(added(ChunkedSlidingWindowInferer), "something")}
    assert {"output", "chunk_size", "postprocessing"} < extra.keys()
    ours, reference = Recorder(), Recorder()
    assert_same(
        infer(volume(), ours, "positional", 5, call=extra, chunk_size=4, postprocessing=torch.neg),
        -monai(volume(), reference, "positional", 5, call=extra),
    )
    assert_same_calls(ours, reference)
    assert ours.args[0] == ("positional", 5)
    assert ours.kwargs[0] == extra


def test_further_arguments_of_the_function_reach_the_network() -> None:
    defaults = (0.25, "constant", 0.125, "constant", 0.0, None, None, False, None, None, None, -1, False)
    ours, reference = Recorder(), Recorder()
    assert_same(
        chunked_sliding_window_inference(volume(), 4, 2, ours, *defaults, "positional", gain=2, chunk_size=3),
        sliding_window_inference(volume(), 4, 2, reference, *defaults, "positional", gain=2),
    )
    assert_same_calls(ours, reference)
    assert ours.args[0] == ("positional",)
    assert ours.kwargs[0] == {"gain": 2}


@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize("how", ["class", "function"])
def test_with_coord_the_network_gets_monais_slices_in_front_of_further_arguments(how: str, sw_batch_size: int) -> None:
    ours, reference = Recorder(), Recorder()
    if how == "class":
        parameters: dict[str, Any] = {"sw_batch_size": sw_batch_size, "with_coord": True}
        infer(volume(), ours, "more", **parameters)
        monai(volume(), reference, "more", **parameters)
    else:
        settings = ((6, 5, 4), sw_batch_size)
        defaults = (0.5, "constant", 0.125, "constant", 0.0, None, None, False, None, None, None, -1, True)
        chunked_sliding_window_inference(volume(), *settings, ours, *defaults, "more")
        sliding_window_inference(volume(), *settings, reference, *defaults, "more")
    assert_same_calls(ours, reference)
    (first, *_), more = ours.args[0]
    assert list(first) == [slice(0, 1), slice(None), slice(0, 6), slice(0, 5), slice(0, 4)]
    assert more == "more"


@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 1, 6, 5, 4)], ids=str)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_a_roi_weight_map_weighs_windows_as_in_monai(shape: tuple[int, ...], sw_batch_size: int) -> None:
    weights = random(*shape).abs() + 0.1
    arguments = (volume(), (6, 5, 4), sw_batch_size, scores, 0.5)
    reference = sliding_window_inference(*arguments, roi_weight_map=weights)
    assert not torch.equal(reference, sliding_window_inference(*arguments))
    assert_same(chunked_sliding_window_inference(*arguments, roi_weight_map=weights, chunk_size=4), reference)


@pytest.mark.parametrize("structure", ["tensor", "tuple", "dict", "mixed sizes in a tuple"])
@pytest.mark.parametrize("given", [False, True], ids=["computed weights", "roi_weight_map"])
def test_process_fn_changes_predictions_and_weights_as_in_monai(structure: str, given: bool) -> None:
    def process_fn(predictions: Any, windows: torch.Tensor, weights: torch.Tensor) -> tuple[Any, torch.Tensor]:
        assert type(predictions) is tuple
        seen.append((tuple(weights.shape), weights.dtype))
        return tuple(p * windows.mean() for p in predictions), weights * (1 + windows.abs().amax())

    arguments: tuple[Any, ...] = (random(2, 1, 6, 8, 4), 4, 2, STRUCTURES[structure], 0.5, "gaussian")
    parameters: dict[str, Any] = {
        "process_fn": process_fn,
        "roi_weight_map": random(1, 1, 4, 4, 4).abs() + 0.1 if given else None,
    }
    seen: list[Any] = []
    ours = chunked_sliding_window_inference(*arguments, **parameters, chunk_size=3)
    seen_by_ours, seen = seen, []
    assert_same(ours, sliding_window_inference(*arguments, **parameters))
    assert seen_by_ours == seen


def test_process_fn_may_return_more_or_fewer_outputs_than_the_network() -> None:
    def one(windows: torch.Tensor) -> torch.Tensor:
        return scores(windows)

    def named(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"only": scores(windows)}

    def add(predictions: Any, windows: torch.Tensor, weights: torch.Tensor) -> Any:
        return (*predictions, windows.sin()), weights

    def drop(predictions: Any, windows: torch.Tensor, weights: torch.Tensor) -> Any:
        return predictions[:1], weights

    for network, process_fn in ((one, add), (named, add), (STRUCTURES["tuple"], drop), (STRUCTURES["dict"], drop)):
        arguments: tuple[Any, ...] = (volume(), 4, 1, network, 0.5, "gaussian")
        reference = sliding_window_inference(*arguments, process_fn=process_fn)
        assert_same(chunked_sliding_window_inference(*arguments, process_fn=process_fn), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cached_weight_map_is_made_once_and_used_as_by_monai(dtype: torch.dtype) -> None:
    inputs = volume().to(dtype)
    ours = ChunkedSlidingWindowInferer(**SETTINGS, cache_roi_weight_map=True)
    reference = SlidingWindowInferer(**SETTINGS, cache_roi_weight_map=True)
    cached = ours.roi_weight_map
    assert torch.equal(cached, reference.roi_weight_map)
    assert_same(ours(inputs, scores), reference(inputs, scores))
    assert ours.roi_weight_map is cached
    ours.roi_weight_map = reference.roi_weight_map = cached.flip(0) + torch.arange(4)
    assert_same(ours(inputs, scores), reference(inputs, scores))


def test_a_weight_map_that_cannot_be_cached_is_warned_about_as_by_monai() -> None:
    for inferer in (SlidingWindowInferer, ChunkedSlidingWindowInferer):
        with pytest.warns(UserWarning, match="cache is not created"):
            inferer((6, -1, 4), cache_roi_weight_map=True)


@pytest.mark.parametrize("call", [{}, {"device": "meta"}, {"buffer_steps": 2, "buffer_dim": 1}], ids=str)
@pytest.mark.parametrize("device", [None, "cpu", "meta"])
@pytest.mark.parametrize("cpu_thresh", [None, 9 * 8 * 7 - 1, 9 * 8 * 7])
def test_cpu_thresh_device_and_buffer_of_a_call_choose_what_they_choose_in_monai(
    cpu_thresh: int | None, device: Any, call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a second device still shows which one the function is asked for."""
    asked: dict[str, tuple[Any, ...]] = {}

    def ask(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def inference(*args: Any, **kwargs: Any) -> torch.Tensor:
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            asked[name] = tuple(bound.arguments[key] for key in ("sw_device", "device", "buffer_steps", "buffer_dim"))
            return volume()

        return inference

    ours, theirs = chunked_sliding_window_inference, sliding_window_inference
    monkeypatch.setattr("monai_chunked.inference.inferer.chunked_sliding_window_inference", ask("ours", ours))
    monkeypatch.setattr("monai.inferers.inferer.sliding_window_inference", ask("monai", theirs))
    for run in (infer, monai):
        run(volume(), scores, cpu_thresh=cpu_thresh, device=device, sw_device="cpu", call=call)
    assert asked["ours"] == asked["monai"]


# ---------------------------------------------------------------- buffered


@pytest.mark.parametrize("buffer_steps", [1, 2, 3, 100])
@pytest.mark.parametrize("buffer_dim", [0, 1, 2, -1])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_buffered_windows_come_in_monais_buffered_order_and_batches_and_the_values_are_monais(
    buffer_steps: int, buffer_dim: int, sw_batch_size: int
) -> None:
    parameters = {"buffer_steps": buffer_steps, "buffer_dim": buffer_dim, "sw_batch_size": sw_batch_size}
    ours, reference = Recorder(), Recorder()
    result, expected = infer(volume(), ours, **parameters), monai(volume(), reference, **parameters)
    assert_same_calls(ours, reference)
    assert result.dtype == expected.dtype
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(result, monai(volume(), scores, sw_batch_size=sw_batch_size), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(23, 30), (41,), (6, 5, 7, 4)], ids=len)
@pytest.mark.parametrize("buffer_steps", [1, 3])
def test_buffered_windows_are_monais_in_any_number_of_dimensions(size: tuple[int, ...], buffer_steps: int) -> None:
    inputs = random(2, 1, *size)
    parameters = {"roi_size": 4, "buffer_steps": buffer_steps, "buffer_dim": 0, "sw_batch_size": 2}
    ours, reference = Recorder(), Recorder()
    assert torch.allclose(infer(inputs, ours, **parameters), monai(inputs, reference, **parameters), atol=1e-6)
    assert_same_calls(ours, reference)


def test_without_overlap_buffered_values_are_monais_bit_for_bit() -> None:
    parameters = {"overlap": 0, "roi_size": (3, 4, 7), "buffer_steps": 1, "buffer_dim": 0}
    assert_same(infer(volume(), scores, **parameters), monai(volume(), scores, **parameters))


@pytest.mark.parametrize("structure", ["tuple", "dict in another order", "mixed sizes in a tuple"])
def test_buffered_every_output_comes_back(structure: str) -> None:
    network = STRUCTURES[structure]
    inputs = random(2, 1, 6, 8, 4)
    ours = infer(inputs, network, roi_size=4, buffer_steps=1, buffer_dim=1)
    reference = monai(inputs, network, roi_size=4)  # MONAI's buffered mode keeps the first only
    assert isinstance(ours, type(reference))
    if isinstance(reference, Mapping):
        assert list(ours) == list(reference)
        ours, reference = tuple(ours.values()), tuple(reference.values())
    assert len(ours) == len(reference) > 1
    for one, other in zip(ours, reference):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_chunk_is_buffer_steps_scan_steps_long_along_buffer_dim() -> None:
    lengths = set()

    def postprocessing(chunk: torch.Tensor) -> torch.Tensor:
        lengths.add(chunk.shape[2])
        return chunk

    inputs = random(1, 1, 5, 24, 4)  # windows start at 0, 4, 8, 12 and 16
    infer(inputs, scores, roi_size=8, postprocessing=postprocessing, buffer_steps=2, buffer_dim=1)
    assert lengths == {8}  # two steps of four voxels


# ---------------------------------------------------------------- dtypes


@with_and_without_gradients
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_integer_inputs_reach_the_network_as_they_are_and_the_result_is_float32(
    dtype: torch.dtype, sw_batch_size: int
) -> None:
    inputs = (volume() * 3).to(torch.uint8 if dtype == torch.uint8 else torch.int64).to(dtype)
    recorder = Recorder(lambda w: scores(w.float()))
    ours = infer(inputs, recorder, sw_batch_size=sw_batch_size)
    assert {windows.dtype for windows in recorder.windows} == {dtype}
    assert_same(ours, monai(inputs.float(), scores, sw_batch_size=sw_batch_size))


@with_and_without_gradients
def test_the_input_itself_as_the_prediction_of_integer_inputs_is_averaged_in_float32() -> None:
    inputs = (volume() * 10).to(torch.int16)
    assert_same(infer(inputs, lambda w: w), monai(inputs.float(), lambda w: w.clone()))


def worst_and_mean(result: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    error = (result.double() - truth).abs()
    return error.max().item(), error.mean().item()


@with_and_without_gradients
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inputs_too", [True, False], ids=["half inputs", "half predictions"])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_in_half_precision_the_error_against_float64_is_no_larger_than_monais(
    dtype: torch.dtype, inputs_too: bool, sw_batch_size: int
) -> None:
    inputs = (volume() * 100).to(dtype)  # what half precision can hold, so that all see the same

    def predict(windows: torch.Tensor) -> torch.Tensor:
        return (scores(windows.float()) * 1000).to(dtype)

    truth = monai(inputs.double(), lambda w: predict(w).double(), sw_batch_size=sw_batch_size)
    inputs = inputs if inputs_too else inputs.float()
    ours = infer(inputs, predict, sw_batch_size=sw_batch_size)
    reference = monai(inputs, predict, sw_batch_size=sw_batch_size)
    assert ours.dtype == reference.dtype == (dtype if inputs_too else torch.float32)
    our_worst, our_mean = worst_and_mean(ours, truth)
    worst, mean = worst_and_mean(reference, truth)
    assert our_worst <= worst
    assert our_mean <= mean
    # and as good as the dtype of the result allows
    assert torch.allclose(ours.double(), truth, rtol=torch.finfo(ours.dtype).eps * (1 if inputs_too else 10), atol=0)


@with_and_without_gradients
def test_under_autocast_the_error_against_float64_is_no_larger_than_monais() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)

    def run(run: Callable[..., Any], inputs: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        def predict(windows: torch.Tensor) -> torch.Tensor:
            prediction = network(windows.float())
            assert prediction.dtype == torch.bfloat16
            return prediction if dtype is None else prediction.to(dtype)

        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run(inputs, predict)

    truth = run(monai, volume().double(), torch.float64)
    ours, reference = run(infer, volume()), run(monai, volume())
    assert ours.dtype == reference.dtype == torch.float32
    for our_error, error in zip(worst_and_mean(ours, truth), worst_and_mean(reference, truth)):
        assert our_error <= error
    assert worst_and_mean(ours, truth)[0] < 1e-5


@with_and_without_gradients
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_in_double_precision_are_added_as_monai_adds_them(dtype: torch.dtype) -> None:
    inputs = volume().to(dtype)
    assert_same(infer(inputs, lambda w: scores(w.double())), monai(inputs, lambda w: scores(w.double())))


# ---------------------------------------------------------------- gradients


def gradients(
    run: Callable[..., Any], structure: Callable[[torch.Tensor], Any], **parameters: Any
) -> tuple[list[torch.Tensor], bool]:
    """Of the inputs and of all parameters of a network; and whether all results require them."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.Tanh())
    inputs = volume().requires_grad_()
    results = run(inputs, lambda windows: structure(network(windows)), overlap=0.25, **parameters)
    results = list(results.values()) if isinstance(results, Mapping) else results
    results = [results] if isinstance(results, torch.Tensor) else results
    loss = sum((result * random(*result.shape, seed=3)).sum() for result in results)
    loss.backward()
    return [inputs.grad, *(p.grad for p in network.parameters())], all(r.requires_grad for r in results)


def assert_monais_gradients(structure: Callable[[torch.Tensor], Any], sw_batch_size: int, **parameters: Any) -> None:
    ours, ours_required = gradients(infer, structure, sw_batch_size=sw_batch_size, **parameters)
    reference, required = gradients(monai, structure, sw_batch_size=sw_batch_size)
    assert ours_required is required is True
    for one, other in zip(ours, reference):
        assert other.abs().sum() > 0
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@with_gradients
@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize(
    "structure",
    [lambda t: t * 1, lambda t: (t * 1, t * 2), lambda t: {"b": t * 1, "a": t * 2}],
    ids=["tensor", "tuple", "dict"],
)
def test_gradients_of_inputs_and_parameters_are_monais(
    structure: Callable[[torch.Tensor], Any], sw_batch_size: int
) -> None:
    assert_monais_gradients(structure, sw_batch_size)


@with_gradients
@pytest.mark.parametrize(
    "parameters",
    [{"chunk_size": 4}, {"output": "device"}, {"output": "cpu"}, {"buffer_steps": 1}],
    ids=lambda parameters: next(iter(parameters)),
)
def test_gradients_are_monais_for_any_chunks_and_any_place_in_memory(parameters: dict[str, Any]) -> None:
    assert_monais_gradients(lambda t: t * 1, 2, **parameters)


@with_gradients
def test_gradients_reach_networks_whose_predictions_monai_overwrites() -> None:
    """Tanh needs its own result for its gradient; MONAI weighs that in place."""
    ours, required = gradients(infer, lambda t: t)
    reference, _ = gradients(monai, lambda t: t.clone())
    assert required
    for one, other in zip(ours, reference):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_values_are_the_same_bits_with_and_without_gradients() -> None:
    network = torch.nn.Conv3d(1, 3, 1)
    without_gradients = infer(volume(), network)
    assert not without_gradients.requires_grad
    with torch.enable_grad():
        with_gradients = infer(volume(), network)
    assert with_gradients.requires_grad
    assert torch.equal(with_gradients, without_gradients)
    assert torch.equal(without_gradients, monai(volume(), network))


@with_gradients
def test_gradients_reach_a_metatensor() -> None:
    results = []
    for run in (infer, monai):
        inputs = MetaTensor(volume()).requires_grad_()
        result = run(inputs, lambda windows: scores(windows) * 1)
        assert result.requires_grad
        (result * random(*result.shape, seed=3)).sum().backward()
        results.append(torch.as_tensor(inputs.grad))
    assert torch.allclose(*results, rtol=1e-4, atol=1e-6)


@with_gradients
@pytest.mark.parametrize(
    "parameters",
    [{"output": "disk"}, {"postprocessing": torch.neg}, {"postprocessing": "argmax", "output": "disk"}],
    ids=["disk", "postprocessing", "both"],
)
def test_on_disk_and_with_postprocessing_inference_runs_without_gradients(parameters: dict[str, Any]) -> None:
    enabled = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        enabled.append(torch.is_grad_enabled())
        return convolution(windows)

    convolution = torch.nn.Conv3d(1, 3, 1)
    result = infer(volume().requires_grad_(), network, **parameters)
    assert not any(enabled)
    assert not result.requires_grad
    assert torch.is_grad_enabled()
    expected = monai(volume(), convolution).detach()
    if "postprocessing" in parameters:
        expected = -expected if parameters["postprocessing"] is torch.neg else expected.argmax(1, keepdim=True)
    assert torch.equal(result.to(expected.dtype), expected)


# ---------------------------------------------------------------- the caller's memory


class WritesInPlace(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.add_(1).sin_()


VIEWS: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[torch.Tensor], Any]]] = {
    "identity": (torch.nn.Identity(), torch.clone),
    "view": (lambda w: w[:, :1], lambda w: w[:, :1].clone()),
    "permuted view": (lambda w: w.flip(1).transpose(2, 3).transpose(2, 3), lambda w: w.flip(1).clone()),
    "views in a tuple": (lambda w: (w, w[:, :1]), lambda w: (w.clone(), w[:, :1].clone())),
    "relu in place": (torch.nn.ReLU(inplace=True), torch.nn.ReLU()),
    "written to": (WritesInPlace(), lambda w: (w + 1).sin()),
}

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda t: t,
    "MetaTensor": MetaTensor,
    "transposed": lambda t: t.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2),
    "strided": lambda t: t.repeat_interleave(2, dim=4)[..., ::2],
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    "expanded over images": lambda t: t[:1].expand(2, -1, -1, -1, -1),
}


@with_and_without_gradients
@pytest.mark.parametrize("network", VIEWS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_the_callers_input_is_never_written_to_and_every_window_is_read_from_it(
    network: str, layout: str, sw_batch_size: int
) -> None:
    writing, pure = VIEWS[network]
    inputs = LAYOUTS[layout](volume(channels=2))
    before, version = inputs.clone(), inputs._version
    ours = infer(inputs, writing, sw_batch_size=sw_batch_size)
    assert torch.equal(inputs, before)
    assert inputs._version == version
    reference = monai(inputs, pure, sw_batch_size=sw_batch_size)
    assert torch.equal(inputs, before)
    if isinstance(reference, tuple):
        ours, reference = ours[0], reference[0]
    assert torch.allclose(ours, reference, rtol=1e-6, atol=1e-6)


@with_and_without_gradients
@pytest.mark.parametrize("how", ["whole image in one window", "padded", "buffered"])
def test_the_callers_input_is_never_written_to_however_windows_lie(how: str) -> None:
    parameters: dict[str, Any] = {
        "whole image in one window": {"roi_size": -1},
        "padded": {"roi_size": (12, 4, 4)},
        "buffered": {"buffer_steps": 1},
    }[how]
    inputs = volume()
    before = inputs.clone()
    ours = infer(inputs, WritesInPlace(), **parameters)
    assert torch.equal(inputs, before)
    assert torch.allclose(ours, monai(inputs, lambda w: (w + 1).sin(), **parameters), atol=1e-6)


@with_and_without_gradients
def test_the_callers_condition_is_never_written_to() -> None:
    condition = volume(seed=1)
    before = condition.clone()
    infer(volume(), lambda windows, condition: condition.add_(windows), call={"condition": condition})
    assert torch.equal(condition, before)


def test_an_expanded_input_is_refused_to_writers_as_pytorch_refuses_it_and_left_alone() -> None:
    inputs = volume()[..., :1].expand(-1, -1, -1, -1, 7)
    before = inputs.clone()
    for run in (infer, monai):
        with pytest.raises(RuntimeError, match="single memory location"):
            run(inputs, torch.nn.ReLU(inplace=True))
    assert torch.equal(inputs, before)
    assert torch.equal(infer(inputs, torch.nn.Identity()), monai(inputs, torch.clone))


@with_and_without_gradients
def test_what_the_network_keeps_is_not_written_to() -> None:
    constant = random(1, 3, 6, 5, 4)
    before = constant.clone()
    ours = infer(volume(), lambda windows: constant)
    assert torch.equal(constant, before)
    assert torch.equal(ours, monai(volume(), lambda windows: constant.clone()))


# ---------------------------------------------------------------- slices


def flat_network(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    assert windows.dim() == 4
    return scores(windows) + windows.mean()


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_slices_give_monais_bits_for_each_spatial_dim(spatial_dim: int, sw_batch_size: int) -> None:
    parameters: dict[str, Any] = {"roi_size": (5, 4), "overlap": 0.5, "mode": "gaussian"}
    parameters.update(spatial_dim=spatial_dim, sw_batch_size=sw_batch_size)
    reference = SliceInferer(**parameters)(volume(), flat_network)
    ours, calls, their_calls = ChunkedSliceInferer(**parameters), Recorder(flat_network), Recorder(flat_network)
    assert_same(ours(volume(), calls), reference)
    SliceInferer(**parameters)(volume(), their_calls)
    assert_same_calls(calls, their_calls)
    for structure in (lambda w: (scores(w), w.sin()), lambda w: {"b": scores(w), "a": w.sin()}):
        assert_same(ours(volume(), structure), SliceInferer(**parameters)(volume(), structure))


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
def test_slices_are_chunked_postprocessed_and_written_like_volumes(spatial_dim: int, tmp_path: Any) -> None:
    reference = SliceInferer(spatial_dim, (5, 4))(volume(), flat_network).argmax(1, keepdim=True)
    labels = ChunkedSliceInferer(
        spatial_dim, (5, 4), chunk_size=(2, 3, 4), postprocessing="argmax", output="disk", output_dir=tmp_path
    )(volume(), flat_network)
    assert torch.equal(labels.long(), reference)
    assert np.array_equal(np.load(tmp_path / "prediction-0001.npy"), reference.numpy())


@needs_condition
@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
def test_slices_of_a_condition_reach_the_network_as_with_monai(spatial_dim: int) -> None:
    def network(windows: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        assert condition.shape == windows.shape
        return scores(windows) * condition

    condition = volume(seed=1)
    reference = SliceInferer(spatial_dim, (5, 4))(volume(), network, condition=condition)
    assert_same(ChunkedSliceInferer(spatial_dim, (5, 4))(volume(), network, condition=condition), reference)


def test_slices_take_further_arguments_along() -> None:
    ours = Recorder(flat_network)
    ChunkedSliceInferer(1, (5, 4))(volume(), ours, "positional", gain=2, output="logits")
    assert set(ours.args) == {("positional",)}
    assert all(kwargs == {"gain": 2, "output": "logits"} for kwargs in ours.kwargs)
    with_coord = Recorder(flat_network)
    ChunkedSliceInferer(1, (5, 4), with_coord=True)(volume(), with_coord)
    ((first,),) = with_coord.args[0]
    assert list(first) == [slice(0, 1), slice(None), slice(0, 5), slice(0, 1), slice(0, 4)]


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
def test_slices_with_a_cached_weight_map_are_those_without(spatial_dim: int) -> None:
    parameters: dict[str, Any] = {"spatial_dim": spatial_dim, "roi_size": (5, 4), "overlap": 0.5, "mode": "gaussian"}
    reference = SliceInferer(**parameters)(volume(), flat_network)  # MONAI's own cached map fits spatial_dim=0 only
    assert_same(ChunkedSliceInferer(**parameters, cache_roi_weight_map=True)(volume(), flat_network), reference)


def test_slices_leave_the_inferer_as_it_was() -> None:
    inferer = ChunkedSliceInferer(2, (5, 4))
    before = copy.deepcopy(vars(inferer))
    inferer(volume(), flat_network)
    assert vars(inferer) == before


# ---------------------------------------------------------------- one inferer, many calls


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i))])
@pytest.mark.parametrize(
    "inferer",
    [
        ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", chunk_size=4),
        ChunkedSlidingWindowInferer(**SETTINGS, postprocessing=Activations(sigmoid=True), cache_roi_weight_map=True),
        ChunkedSliceInferer(1, (5, 4), output="disk"),
    ],
    ids=["argmax", "transform and cache", "slices"],
)
def test_an_inferer_copies_and_pickles(inferer: Any, copied: Callable[[Any], Any]) -> None:
    inferer(volume(), scores)
    other = copied(inferer)
    assert type(other) is type(inferer)
    assert vars(other).keys() == vars(inferer).keys()
    assert_same(other(volume(), scores), inferer(volume(), scores))


def test_one_inferer_serves_calls_of_different_shapes_dtypes_and_networks() -> None:
    ours, reference = ChunkedSlidingWindowInferer(4, overlap=0.5), SlidingWindowInferer(4, overlap=0.5)
    cases: list[tuple[torch.Tensor, Callable[..., Any]]] = [
        (random(1, 1, 9), scores),
        (random(2, 3, 6, 7), STRUCTURES["tuple"]),
        (random(1, 1, 5, 6, 7, dtype=torch.float64), scores),
        (random(3, 1, 9), STRUCTURES["dict"]),
    ]
    for inputs, network in cases * 2:
        assert_same(ours(inputs, network), reference(inputs, network))


@with_and_without_gradients
@pytest.mark.parametrize("postprocessing", [None, "argmax"])
def test_calls_from_many_threads_do_not_disturb_each_other(postprocessing: Any) -> None:
    inferer = ChunkedSlidingWindowInferer(4, 2, overlap=0.5, mode="gaussian", postprocessing=postprocessing)
    cases = [(random(1 + n % 2, 1, 5 + n % 3, 6, 4 + n % 5, seed=n), n % 4 + 1) for n in range(24)]

    def call(case: tuple[torch.Tensor, int]) -> torch.Tensor:
        inputs, classes = case

        def network(windows: torch.Tensor) -> torch.Tensor:
            time.sleep(0.0005)  # others run meanwhile
            return scores(windows, classes)

        return inferer(inputs, network)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(call, cases))
    reference = SlidingWindowInferer(4, 2, overlap=0.5, mode="gaussian")
    for (inputs, classes), result in zip(cases, results):
        expected = reference(inputs, lambda windows, classes=classes: scores(windows, classes))
        if postprocessing:
            expected = expected.argmax(1, keepdim=True).to(torch.uint8)
        assert_same(result, expected)


# ---------------------------------------------------------------- progress


def test_progress_is_a_bar_over_windows_that_shows_finished_chunks_and_the_memory_of_open_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slow(windows: torch.Tensor) -> torch.Tensor:
        time.sleep(0.12)  # the bar is drawn ten times a second
        return scores(windows)

    # 3 windows of 8 voxels in 1 row, chunks of 4 voxels: 4 chunks of 3 channels, at most two open at a time
    result = infer(random(1, 1, 16, 8), slow, roi_size=8, progress=True, chunk_size=(4, 8))
    shown = capsys.readouterr().err
    frames = [frame for frame in shown.split("\r") if "window" in frame]
    assert "0/3" in frames[0]
    assert "3/3" in frames[-1]
    assert "chunks=4/4" in frames[-1]
    assert "open=0 bytes" in frames[-1]
    assert any("open=384 bytes" in frame and "chunks=1/4" in frame for frame in frames), frames
    assert torch.equal(result, monai(random(1, 1, 16, 8), scores, roi_size=8))


def test_without_progress_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    infer(volume(), scores)
    assert capsys.readouterr() == ("", "")
