"""Pre- and postprocessing see one window or chunk at a time, so what looks further must not come to it unnoticed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai import transforms
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activations,
    AsDiscrete,
    AsDiscreted,
    CastToType,
    Compose,
    ConvertToMultiChannelBasedOnBratsClasses,
    EnsureType,
    FillHoles,
    Flipd,
    GaussianSmooth,
    Identity,
    KeepLargestConnectedComponent,
    LabelFilter,
    LabelToMask,
    Lambda,
    MapLabelValue,
    MapTransform,
    MedianSmooth,
    NormalizeIntensity,
    OneOf,
    RandGaussianNoise,
    RandomizableTransform,
    RandomOrder,
    RemoveRepeatedChannel,
    RemoveSmallObjects,
    RepeatChannel,
    SavitzkyGolaySmooth,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    ShiftIntensity,
    SobelGradients,
    SomeOf,
    ThresholdIntensity,
    ToDevice,
    ToNumpy,
    ToTensor,
    Transform,
)

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.transforms.voxelwise import PER_VOXEL, check_voxelwise
from tests.refusals import never

LABELS = Compose([Activations(softmax=True), AsDiscrete(argmax=True)])

ACCEPTED: dict[str, tuple[str, Transform]] = {
    "sigmoid": ("scores", Activations(sigmoid=True)),
    "softmax": ("scores", Activations(softmax=True)),
    "other activation": ("scores", Activations(other=torch.tanh)),
    "argmax": ("scores", AsDiscrete(argmax=True)),
    "argmax, one-hot": ("scores", AsDiscrete(argmax=True, to_onehot=4)),
    "threshold": ("scores", AsDiscrete(threshold=0.5)),
    "rounding": ("scores", AsDiscrete(rounding="torchrounding")),
    "CastToType": ("scores", CastToType(np.float16)),
    "Compose": ("scores", LABELS),
    "ConvertToMultiChannel...": ("scores", Compose([LABELS, ConvertToMultiChannelBasedOnBratsClasses()])),
    "EnsureType": ("image", EnsureType()),
    "Identity": ("image", Identity()),
    "LabelFilter": ("scores", Compose([LABELS, LabelFilter([1, 3])])),
    "LabelToMask of labels": ("scores", Compose([LABELS, LabelToMask([1, 3])])),
    "LabelToMask of channels": ("scores", Compose([AsDiscrete(threshold=0.5), LabelToMask([1, 3], True)])),
    "Lambda": ("scores", Lambda(lambda x: x[:2] * 3)),
    "MapLabelValue": ("scores", Compose([LABELS, MapLabelValue([0, 1, 2, 3], [0, 7, 5, 9], np.uint8)])),
    "NormalizeIntensity": ("image", NormalizeIntensity(0.3, 0.7)),
    "NormalizeIntensity of channels": ("image", NormalizeIntensity([0.3, 0.1], [0.7, 0.2], channel_wise=True)),
    "NormalizeIntensity but for 0": ("image", NormalizeIntensity(0.3, 0.7, nonzero=True)),
    "RemoveRepeatedChannel": ("scores", RemoveRepeatedChannel(2)),
    "RepeatChannel": ("scores", RepeatChannel(2)),
    "ScaleIntensity": ("image", ScaleIntensity(minv=None, maxv=None, factor=0.3)),
    "ScaleIntensityRange": ("image", ScaleIntensityRange(0.1, 0.8, -1, 1, clip=True)),
    "ShiftIntensity": ("image", ShiftIntensity(0.4, safe=True)),
    "ThresholdIntensity": ("image", ThresholdIntensity(0.5, cval=0.1)),
    "ToDevice": ("image", ToDevice("cpu")),
    "ToNumpy": ("scores", ToNumpy()),
    "ToTensor": ("image", ToTensor()),
}
"""Each transform of MONAI that is accepted, behind the network or before it."""

REFUSED: dict[str, Any] = {
    "KeepLargestConnectedComponent": KeepLargestConnectedComponent(),
    "RemoveSmallObjects": RemoveSmallObjects(),
    "FillHoles": FillHoles(),
    "GaussianSmooth": GaussianSmooth(),
    "MedianSmooth": Compose([Identity(), Compose([MedianSmooth()])]),
    "SavitzkyGolaySmooth": Lambda(SavitzkyGolaySmooth(3, 1)),
    "SobelGradients": functools.partial(SobelGradients()),
    "RandGaussianNoise": RandGaussianNoise(),
    "OneOf": OneOf([Identity()]),
    "SomeOf": SomeOf([Identity()]),
    "RandomOrder": RandomOrder([Identity()]),
    "fill_holes": transforms.utils.fill_holes,
    "ScaleIntensityRangePercentiles": ScaleIntensityRangePercentiles(1, 99, 0, 1),
    "NormalizeIntensity": NormalizeIntensity(),
    "NormalizeIntensity with": NormalizeIntensity(subtrahend=3),
    "NormalizeIntensity with these": NormalizeIntensity(np.zeros((1, 6, 6, 6)), 2),
    "ScaleIntensity": ScaleIntensity(),
    "ScaleIntensity with": ScaleIntensity(minv=None, maxv=1),
    "Activations": Activations(softmax=True, dim=1),
    "AsDiscrete": AsDiscrete(argmax=True, dim=2),
    "FillHoles inside": Activations(other=FillHoles()),
}


def network(windows: torch.Tensor) -> torch.Tensor:
    x = windows.float().sum(1, keepdim=True)
    return torch.cat([x.sin(), (3 * x).cos(), x, x**2 - 0.2], 1)


def classes() -> list[type]:
    """Every transform that MONAI exports."""
    exported = [value for value in vars(transforms).values() if inspect.isclass(value)]
    return [c for c in exported if issubclass(c, Transform) and c.__module__.startswith("monai.transforms")]


def without_init(kind: type) -> Any:
    concrete: Any = type(kind.__name__, (kind,), {})
    concrete.__abstractmethods__ = frozenset()
    transform = object.__new__(concrete)
    transform.transforms, transform.func, transform.other, transform.kwargs = (), None, None, {}
    return transform


@pytest.mark.parametrize("name", ["preprocessing", "postprocessing"])
def test_every_transform_of_monai_that_is_not_known_to_treat_each_voxel_by_itself_is_refused(name: str) -> None:
    refused = 0
    for kind in classes():
        base = kind.__module__ in ("monai.transforms.transform", "monai.transforms.inverse")
        if kind in PER_VOXEL or (base and not issubclass(kind, (MapTransform, RandomizableTransform))):
            continue
        with pytest.raises((ValueError, TypeError), match=rf"{name} contains.*{kind.__name__}\b"):
            check_voxelwise(name, without_init(kind))
        refused += 1
    assert refused > 250


def test_every_transform_that_is_accepted_is_compared_below() -> None:
    def kinds(transform: Any) -> set[type]:
        inside = transform.transforms if isinstance(transform, Compose) else ()
        return {type(transform)}.union(*map(kinds, inside))

    assert set().union(*(kinds(transform) for _, transform in ACCEPTED.values())) == set(PER_VOXEL)


@pytest.mark.parametrize("name", ACCEPTED)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.data())
def test_an_accepted_transform_gives_in_chunks_what_it_gives_for_the_whole_image(name: str, data: Any) -> None:
    place, transform = ACCEPTED[name]
    size = data.draw(st.lists(st.integers(5, 11), min_size=3, max_size=3))
    image = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    image[image < 0.2] = 0
    windows: dict[str, Any] = {"roi_size": (4, 5, 6), "overlap": data.draw(st.sampled_from([0, 0.25, 0.5]))}
    chunk_size = data.draw(st.sampled_from([None, 3, (2, 7, 5)]))
    monai = SlidingWindowInferer(**windows)

    def whole(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.as_tensor(transform(one.clone())).as_subclass(torch.Tensor) for one in images])

    if place == "scores":
        result = ChunkedSlidingWindowInferer(**windows, postprocessing=transform, chunk_size=chunk_size)(image, network)
        reference = whole(monai(image, network))
    else:
        result = ChunkedSlidingWindowInferer(**windows, preprocessing=transform, chunk_size=chunk_size)(image, network)
        reference = monai(whole(image), network).to(result.dtype)
    if place == "scores" and name in ("sigmoid", "softmax", "other activation"):
        # PyTorch's exponential has other last bits at the end of its memory, where it is not vectorised
        assert torch.allclose(result, reference, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(result, reference)
        assert result.dtype == reference.dtype


@pytest.mark.parametrize("name", ["preprocessing", "postprocessing"])
@pytest.mark.parametrize("what", REFUSED)
def test_neighbours_are_refused_by_name_before_the_network_runs_with_what_to_do_instead(name: str, what: str) -> None:
    inferer = ChunkedSlidingWindowInferer(4, **{name: REFUSED[what]})
    with pytest.raises(ValueError, match=rf"{name} contains {what.split()[0]}\b") as caught:
        inferer(torch.rand(1, 1, 6, 6, 6), never)
    place = "before the inferer" if name == "preprocessing" else "behind the inferer"
    assert place in str(caught.value)


def test_a_refusal_says_which_parameters_would_do() -> None:
    with pytest.raises(ValueError, match="give subtrahend and divisor"):
        check_voxelwise("preprocessing", NormalizeIntensity(channel_wise=True))
    with pytest.raises(ValueError, match="use ScaleIntensityRange with the numbers of the whole image"):
        check_voxelwise("preprocessing", ScaleIntensity())
    with pytest.raises(ValueError, match="dim=0"):
        check_voxelwise("postprocessing", Activations(softmax=True, dim=1))


def test_one_of_several_postprocessings_is_refused_too() -> None:
    for several in (("argmax", FillHoles()), {"a": None, "b": FillHoles()}):
        with pytest.raises(ValueError, match="postprocessing contains FillHoles"):
            ChunkedSlidingWindowInferer(4, postprocessing=several)(torch.rand(1, 1, 6, 6, 6), network)


@pytest.mark.parametrize("name", ["preprocessing", "postprocessing"])
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Compose([Identity(), Flipd("image")]), "dictionary transform Flipd.*use the array transform, Flip$"),
        (AsDiscrete, r"AsDiscrete is a class; give an object, AsDiscrete\(\.\.\.\)"),
    ],
)
def test_dictionary_transforms_and_classes_get_a_sentence(name: str, transform: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"{name}.*{message}"):
        ChunkedSlidingWindowInferer(4, **{name: transform})(torch.rand(1, 1, 6, 6, 6), network)


def test_windows_are_no_dictionaries() -> None:
    with pytest.raises(TypeError, match=r"dictionary transform AsDiscreted.*use the array transform, AsDiscrete$"):
        check_voxelwise("preprocessing", AsDiscreted("image", argmax=True))


class Doubled(Transform):
    def __call__(self, data: torch.Tensor) -> torch.Tensor:
        return data * 2


class Smoother(GaussianSmooth):
    pass


class Noise(RandomizableTransform):
    def __call__(self, data: torch.Tensor) -> torch.Tensor:
        return data


def test_what_is_not_monais_is_taken_at_its_word() -> None:
    own: list[Callable[..., Any]] = [Doubled(), Compose([Doubled(), torch.sigmoid]), torch.nn.Softmax(0)]
    for accepted in [*own, Lambda(torch.tanh), functools.partial(torch.softmax, dim=0), torch.sigmoid, torch.exp]:
        check_voxelwise("postprocessing", accepted)
    for refused in (Smoother(), Compose([Noise()])):  # but not where it builds on what is known
        with pytest.raises(ValueError, match="does not treat each voxel by itself"):
            check_voxelwise("postprocessing", refused)
