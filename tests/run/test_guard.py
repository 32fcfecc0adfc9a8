"""What is computed of labels is what it would be of any tensor, and is guarded only where it is still labels."""

from __future__ import annotations

import functools
import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss
from monai.metrics import DiceMetric
from monai.networks import nets
from monai.transforms import (
    AsDiscrete,
    Compose,
    CropForeground,
    EnsureType,
    LabelFilter,
    MapLabelValue,
    Orientation,
    RandFlip,
    ScaleIntensity,
)

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.run.labels import KEEPS, SIGMOID, Labels

KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"tensor": torch.Tensor.clone, "MetaTensor": MetaTensor}


def labels_of(size: tuple[int, ...], kind: str = "tensor", images: int = 1) -> Any:
    """Three classes, ``(images, 1, *size)``."""
    return _labels_of(size, kind, images).clone()


@functools.lru_cache
def _labels_of(size: tuple[int, ...], kind: str, images: int) -> Any:
    image = KINDS[kind](torch.rand(images, 1, *size, generator=torch.Generator().manual_seed(0)) * 5)

    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([(k * windows.as_subclass(torch.Tensor)).sin() for k in range(1, 4)], 1)

    return ChunkedSlidingWindowInferer(64, postprocessing="argmax")(image, network)


def same_voxels(found: torch.Tensor, expected: torch.Tensor) -> bool:
    try:
        return torch.equal(found, expected) or torch.equal(found.isnan(), expected.isnan())
    except NotImplementedError:  # of layouts and dtypes that hardly anything is known of
        return str(found) == str(expected)


def check_same(found: Any, expected: Any) -> None:
    """Values, classes and metadata."""
    if isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for pair in zip(found, expected):
            check_same(*pair)
    elif isinstance(expected, torch.Tensor):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        assert same_voxels(found, expected)
        if isinstance(expected, MetaTensor):
            assert set(found.meta) == set(expected.meta)
    else:
        assert type(found) is type(expected)


# ---------------------------------------------------------------- a table of what is done to labels

LEAVES: dict[str, Callable[[Any], Any]] = {
    "clone": lambda x: x.clone(),
    "to": lambda x: x.to(torch.float64),
    "float": lambda x: x.float(),
    "cpu": lambda x: x.cpu(),
    "contiguous": lambda x: x.contiguous(),
    "first half": lambda x: x[..., : (x.shape[-1] + 1) // 2],
    "flip": lambda x: x.flip(-1),
    "rot90": lambda x: torch.rot90(x, 1, (-2, -1)),
    "transpose": lambda x: x.transpose(-1, -2),
    "view": lambda x: x.contiguous().view(x.shape),
    "pad": lambda x: F.pad(x, (1, 1)),
    "nearest": lambda x: F.interpolate(x.float(), scale_factor=2),
    "stack": lambda x: torch.stack([x[0], x[0]]),
    "unbind": lambda x: torch.stack(torch.unbind(x)),
    "decollate": lambda x: list_data_collate([{"pred": each} for each in decollate_batch(x)])["pred"],
    "set a number": lambda x: _set(x.clone(), 2, 0),
    "detach": lambda x: x.detach(),
    "ensure type": lambda x: EnsureType(dtype=torch.float32)(x),
}


ENDS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "times an image": lambda x, image: image * (x > 0),
    "an image times": lambda x, image: (x > 0) * image,
    "plus": lambda x, image: x + image,
    "plus a number": lambda x, image: x + 1,
    "divided": lambda x, image: x / 3,
    "added in place": lambda x, image: x.float().add_(image),
    "plus equals": lambda x, image: _plus_equals(x.float(), image),
    "set scores": lambda x, image: _set(x.float(), ..., image),
    "written into": lambda x, image: torch.mul(image, 2, out=x.to(image.dtype)),
    "compared": lambda x, image: x == 1,
    "where": lambda x, image: torch.where(x > 0, image, 0.0),
    "where of labels": lambda x, image: torch.where(x > 0, x, 0),
    "cat": lambda x, image: torch.cat([image, x.to(image.dtype)], 1),
    "cat of labels": lambda x, image: torch.cat([x, x], 1),
    "stack with scores": lambda x, image: torch.stack([x.to(image.dtype), image]),
    "masked": lambda x, image: image.masked_fill(x == 0, -1e4),
    "gathered": lambda x, image: image.flatten()[x.long()],
    "one-hot": lambda x, image: F.one_hot(x.long().reshape(-1), 3),
    "AsDiscrete one-hot": lambda x, image: AsDiscrete(to_onehot=3)(x[0]),
    "AsDiscrete threshold": lambda x, image: AsDiscrete(threshold=1)(x[0]),
    "label filter": lambda x, image: LabelFilter([1])(x[0]),
    "mapped": lambda x, image: MapLabelValue([0, 1], [5, 6])(x[0]),
    "convolved": lambda x, image: F.conv2d(
        x.to(image.dtype).reshape(1, 1, -1, x.shape[-1]), image.new_ones(1, 1, 1, 1)
    ),
    "mean": lambda x, image: x.float().mean(),
    "largest": lambda x, image: x.max(dim=1),
    "scaled": lambda x, image: ScaleIntensity()(x[0].float()),
    "as type": lambda x, image: image.type_as(x.float()),
    "expand as": lambda x, image: image.expand_as(x),
    "sorted": lambda x, image: x.flatten().sort(),
    "sizes": lambda x, image: (tuple(x.shape), x.dtype, x.sum().item(), x.numpy().dtype),
}


def _set(tensor: Any, place: Any, value: Any) -> Any:
    tensor[tensor == place if place is not ... else place] = value
    return tensor


def _plus_equals(tensor: Any, other: Any) -> Any:
    tensor += other
    return tensor


SIZES = [(2, 3, 4), (3, 2, 2), (5, 4, 3)]


CASES = settings(max_examples=100, deadline=None, derandomize=True)


@CASES
@given(
    st.lists(st.sampled_from(sorted(LEAVES)), max_size=4),
    st.sampled_from(sorted(ENDS)),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(SIZES),
    st.integers(1, 2),
)
@pytest.mark.filterwarnings("ignore")
def test_what_leaves_labels_is_guarded_and_what_is_computed_of_them_is_not(
    leaves: list[str], ends: str, kind: str, other: str, size: tuple[int, ...], images: int
) -> None:
    labels = labels_of(size, kind, images)
    plain = labels.unguarded()
    for name in leaves:
        labels, plain = LEAVES[name](labels), LEAVES[name](plain)
        check_same(labels.unguarded(), plain)
        assert isinstance(labels, Labels)
        assert isinstance(labels, MetaTensor) == isinstance(plain, MetaTensor)
    for destroy in (lambda x: x.argmax(1), lambda x: x[0].argmax(0), lambda x: x.float().softmax(1), torch.sigmoid):
        with pytest.raises(ValueError, match="of labels"):
            destroy(labels)
    image = KINDS[other](torch.rand(plain.shape))
    found, expected = ENDS[ends](labels, image), ENDS[ends](plain, image)
    check_same(found, expected)
    for scores in found if isinstance(found, (tuple, list)) else [found]:
        if isinstance(scores, torch.Tensor):
            torch.sigmoid(scores.float())


@pytest.mark.parametrize(("kind", "floating"), [("tensor", False), ("MetaTensor", True)])
def test_every_function_of_one_tensor_that_pytorch_has_says_of_labels_what_it_says_of_a_tensor(
    kind: str, floating: bool, request: pytest.FixtureRequest
) -> None:
    """Whatever is not on the list, that of versions to come too.

    Memory that a function leaves as it is (``empty_like``, ``resize_``) is filled, so that it can be compared.
    """
    torch.use_deterministic_algorithms(True)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    functions = {each for some in torch.overrides.get_overridable_functions().values() for each in some}
    skipped = (
        "backward",
        "set_",
        "share_memory_",
        "__reduce_ex__",
        "__deepcopy__",
        "__repr__",
        "storage",
        "__dlpack__",
    )
    labels = labels_of((2, 3, 4), kind)
    labels = labels.float() if floating else labels
    compared = 0
    for function in functions:
        name = getattr(function, "__name__", "")
        if function in SIGMOID or any(each in name for each in skipped):
            continue
        outcomes = []
        for guarded in (True, False):
            own = labels.clone()
            torch.manual_seed(0)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    outcomes.append(function(own if guarded else own.unguarded()))
            except Exception as error:  # whatever a function says to an argument that it does not take
                outcomes.append(type(error))
        found, expected = outcomes
        if isinstance(expected, torch.Tensor) and function in KEEPS and isinstance(found, Labels):
            found = found.unguarded()
        if isinstance(expected, (torch.Tensor, type)):
            compared += isinstance(expected, torch.Tensor)
            assert isinstance(expected, type) == isinstance(found, type), (function, found, expected)
            if isinstance(expected, torch.Tensor):
                check_same(found, expected)
    assert compared > 100


# ---------------------------------------------------------------- what is no class


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_channels_hold_classes(kind: str) -> None:
    """A dimension of size one may be of images, or of space."""
    flat = labels_of((1, 4, 5), kind)
    for labels in (flat, flat.float()):
        for dim in (0, 2, -3):
            assert not labels.argmax(dim).any()
            assert labels.float().softmax(dim).all()
        for dim in (1, -4):
            with pytest.raises(ValueError, match=f"argmax over dimension {dim} of labels"):
                labels.argmax(dim)
        assert not labels[0].argmax(1).any()
        with pytest.raises(ValueError, match="argmax over dimension 0 of labels"):
            labels[0].argmax(0)
    assert labels_of((5,), kind).argmax(2).shape == (1, 1)
    two = labels_of((1, 5), kind)
    assert two.argmax(2).shape == (1, 1, 5)
    with pytest.raises(ValueError, match="argmax over dimension 0 of labels"):
        two[0].argmax(0)


# ---------------------------------------------------------------- networks, losses, metrics

SMALL: dict[str, tuple[int, Callable[[], torch.nn.Module]]] = {
    "AttentionUnet": (16, lambda: nets.AttentionUnet(3, 1, 2, (4, 8), (2,))),
    "SegResNet": (16, lambda: nets.SegResNet(3, 8, 1, 2)),
    "SwinUNETR": (64, lambda: nets.SwinUNETR(1, 2, depths=(1,) * 4, num_heads=(1,) * 4, feature_size=12)),
    "UNETR": (
        16,
        lambda: nets.UNETR(1, 2, (16, 16, 16), feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2),
    ),
    "DynUNet": (16, lambda: nets.DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8))),
    "VNet": (16, lambda: nets.VNet(3, 1, 2)),
    "HighResNet": (8, lambda: nets.HighResNet(3, 1, 2)),
    "BasicUNetPlusPlus": (32, lambda: nets.BasicUNetPlusPlus(3, 1, 2, features=(4,) * 6)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if size > 16 else name for name, (size, _) in SMALL.items()]
)
def test_a_second_network_gets_labels_or_what_was_cut_out_by_them_without_a_warning(name: str) -> None:
    size, make = SMALL[name]
    torch.manual_seed(0)
    network = make().eval()
    for kind in KINDS:
        labels = labels_of((size,) * 3, kind)
        plain = labels.unguarded()
        image = KINDS[kind](torch.rand(plain.shape))
        with torch.no_grad():
            check_same(network(image * (labels > 0)), network(image * (plain > 0)))
            if size < 64:
                check_same(network(labels.float()), network(plain.float()))


def test_a_cascade_of_two_inferers_has_the_bits_of_plain_labels() -> None:
    labels, image = labels_of((12, 12, 12)), torch.rand(1, 1, 12, 12, 12)
    network = SMALL["AttentionUnet"][1]().eval()
    second = ChunkedSlidingWindowInferer(8, postprocessing="argmax")
    with torch.no_grad():
        both = [torch.where(each > 0, image, 0.0) for each in (labels, labels.unguarded())]
        found, expected = (second(one, network) for one in both)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(second(labels.float(), network), second(labels.unguarded().float(), network))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_metrics_take_them_for_what_was_drawn(kind: str) -> None:
    labels = labels_of((4, 5, 6), kind)
    plain, scores = labels.unguarded(), torch.rand(1, 3, 4, 5, 6)
    for loss in (FocalLoss, DiceFocalLoss, DiceCELoss, DiceLoss):
        several = {"softmax" if loss is not FocalLoss else "use_softmax": True, "to_onehot_y": True}
        check_same(loss(**several)(scores, labels), loss(**several)(scores, plain))
        one = {} if loss is FocalLoss else {"sigmoid": True}
        for target in (lambda x: (x > 0).float(), lambda x: x.float() / 2):
            check_same(loss(**one)(scores[:, :1], target(labels)), loss(**one)(scores[:, :1], target(plain)))
    masked = torch.where(labels > 0, scores, -1e4)
    check_same(masked.softmax(1), torch.where(plain > 0, scores, -1e4).softmax(1))
    truth = AsDiscrete(to_onehot=3)(plain[0])[None]
    found, expected = (
        DiceMetric()(torch.stack([AsDiscrete(to_onehot=3)(one) for one in decollate_batch(each)]), truth)
        for each in (labels, plain)
    )
    check_same(found, expected)


# ---------------------------------------------------------------- what carries tensors


class Pairs(Dataset):
    def __init__(self, labels: Any) -> None:
        super().__init__([labels, labels])

    def __getitem__(self, number: int) -> Any:
        return {"pred": self.data[number], "image": torch.zeros(1)}


@pytest.mark.parametrize("kind", KINDS)
def test_workers_of_a_loader_carry_them(kind: str) -> None:
    labels = labels_of((3, 4, 5), kind)[0]
    context = multiprocessing.get_context("fork")
    (batch,) = DataLoader(Pairs(labels), batch_size=2, num_workers=1, multiprocessing_context=context)
    assert torch.equal(batch["pred"], torch.stack([labels.unguarded()] * 2))
    assert isinstance(batch["pred"], MetaTensor) == (kind == "MetaTensor")


@pytest.mark.parametrize("kind", ["tensor", pytest.param("MetaTensor", marks=pytest.mark.long)])
def test_a_compiled_function_takes_them_where_it_takes_a_tensor(kind: str) -> None:
    labels = labels_of((3, 4, 5), kind)

    def cut_out(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(torch.where(x > 0, x.float() * 0.5, 0.0)) + x[0].float().flip(0)

    compiled = torch.compile(cut_out, backend="eager", fullgraph=kind == "tensor")
    check_same(compiled(labels), compiled(labels.unguarded()))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gradients_and_vmap_see_a_tensor(kind: str) -> None:
    labels = labels_of((4, 4, 4), kind)
    plain, network = labels.unguarded(), torch.nn.Conv3d(1, 2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_same(network(labels.float()), network(plain.float()))
    check_same(torch.vmap(lambda x: x.float().mean())(labels), torch.vmap(lambda x: x.float().mean())(plain))
    leaf = labels.float().requires_grad_()
    (leaf * 3).sum().backward()
    assert torch.equal(leaf.grad, torch.full(plain.shape, 3.0))
    assert np.array_equal(np.add(labels, 1), np.add(plain, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_monai_make_of_them_what_they_make_of_a_tensor(kind: str) -> None:
    labels = labels_of((4, 5, 6), kind)[0]
    plain = labels.unguarded()
    for transform in (Orientation("LPS"), CropForeground(), Compose([RandFlip(1.0), EnsureType()]), LabelFilter([2])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = transform(labels), transform(plain)
        check_same(found.unguarded() if isinstance(found, Labels) else found, expected)


def test_tensors_of_other_classes_have_their_say() -> None:
    class Other(torch.Tensor):
        pass

    labels = labels_of((3, 4, 5))
    other = torch.rand(3, 4, 5).as_subclass(Other)
    for found, expected in ((labels * other, labels.unguarded() * other), (other - labels, other - labels.unguarded())):
        check_same(found, expected)


# ---------------------------------------------------------------- several heads, backgrounds, other endings


def test_each_head_is_guarded_as_its_own_postprocessing_says() -> None:
    def network(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = torch.cat([(k * windows).sin() for k in range(1, 4)], 1)
        return {"edges": scores[:, :1], "organs": scores, "scores": scores}

    postprocessing = {"organs": "argmax", "edges": AsDiscrete(threshold=0.5), "scores": None}
    found = ChunkedSlidingWindowInferer(4, postprocessing=postprocessing)(torch.rand(1, 1, 6, 6, 6), network)
    assert [name for name, one in found.items() if isinstance(one, Labels)] == ["edges", "organs"]
    cut_out = torch.where(found["organs"] > 0, found["scores"], 0)
    assert type(cut_out) is torch.Tensor
    torch.sigmoid(found["scores"] * found["edges"])


def test_labels_of_skipped_windows_are_guarded_and_what_is_computed_of_them_is_not() -> None:
    inferer = ChunkedSlidingWindowInferer(4, postprocessing="argmax", skip=0.5, background=[-1.0, 1.0, 0.0])
    labels = inferer(torch.rand(1, 1, 6, 6, 6) / 2, lambda windows: torch.cat([windows] * 3, 1))
    assert (labels == 1).all()
    with pytest.raises(ValueError, match="argmax"):
        labels.argmax(1)
    torch.sigmoid(labels * 1.0)
