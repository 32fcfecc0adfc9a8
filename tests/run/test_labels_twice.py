"""Results that are labels already are not destroyed by what a bundle does to scores."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.networks.utils import one_hot
from monai.transforms import (
    Activations,
    AsDiscrete,
    CenterSpatialCrop,
    Compose,
    EnsureType,
    Flip,
    Resize,
    Rotate,
    SaveImage,
    Spacing,
    SpatialPad,
)

from monai_chunked import ChunkedSlidingWindowInferer, NiftiOutput
from tests import ROOT
from tests.outputs.cases import OUTPUTS
from tutorials.template import write_template


def network(windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([(k + 1) * (windows.as_subclass(torch.Tensor) * k).sin() for k in range(1, 5)], 1)


def labels_of(image: torch.Tensor, **parameters: Any) -> Any:
    settings = {"roi_size": 6, "overlap": 0.25, "postprocessing": "argmax", **parameters}
    return ChunkedSlidingWindowInferer(**settings)(image, network)


def volume(images: int = 1) -> torch.Tensor:
    return torch.rand(images, 1, 8, 9, 10, generator=torch.Generator().manual_seed(0)) * 5


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"tensor": torch.Tensor.clone, "MetaTensor": MetaTensor}


@pytest.fixture(params=KINDS)
def labels(request: pytest.FixtureRequest) -> Any:
    """``(1, 1, *spatial)``, with metadata and without."""
    return labels_of(KINDS[request.param](volume()))


# ---------------------------------------------------------------- in a bundle

ENDINGS: dict[str, tuple[list[str], bool, str | None]] = {
    "softmax, linear Invertd, argmax": (["Activationsd", "Invertd", "AsDiscreted"], False, "softmax over dimension 0"),
    "linear Invertd, argmax": (["Invertd", "AsDiscreted"], False, "argmax over dimension 0"),
    "softmax, argmax, nearest Invertd": (["Activationsd", "AsDiscreted", "Invertd"], True, "softmax over dimension 0"),
    "argmax, nearest Invertd": (["AsDiscreted", "Invertd"], True, "argmax over dimension 0"),
    "argmax": (["AsDiscreted"], True, "argmax over dimension 0"),
    "sigmoid, threshold": (["Sigmoid", "Threshold"], True, "sigmoid of labels"),
    "nearest Invertd": (["Invertd"], True, None),
    "nothing": ([], True, None),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The template at 6 mm."""
    return write_template(tmp_path_factory.mktemp("data"), 6)["image"]


CHUNKED = {"_target_": "monai_chunked.ChunkedSlidingWindowInferer", "postprocessing": "argmax"}


def run_stock_bundle(
    image: str, folder: Path, inferer: dict[str, Any], names: list[str], nearest: bool
) -> tuple[np.ndarray | None, BaseException | None]:
    """The bundle that the test suite carries, with another inferer and ending: the voxels it saves, or its error."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "tests" / "stock_bundle.yaml"))
    ending = {each["_target_"]: each for each in parser["postprocessing#transforms"]}
    ending["Sigmoid"] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    ending["Threshold"] = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
    ending["Invertd"]["nearest_interp"] = nearest
    parser.update({"bundle_root": str(ROOT), "image": image, "output_dir": str(folder / "eval")})
    parser["preprocessing#transforms#3#pixdim"] = [5, 5, 5]
    parser["inferer"] = {**parser["inferer"], "roi_size": [24, 24, 24], "overlap": 0.25, **inferer}
    parser["postprocessing#transforms"] = [ending[name] for name in [*names, "SaveImaged"]]
    try:
        parser.get_parsed_content("evaluator").run()
    except RuntimeError as error:
        return None, error
    (path,) = (folder / "eval").rglob("*.nii.gz")
    return np.asanyarray(nibabel.load(path).dataobj), None


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stock_bundle_that_makes_labels_of_labels_fails_and_says_what_to_remove(
    ending: str, image: str, tmp_path: Path
) -> None:
    names, nearest, message = ENDINGS[ending]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved, error = run_stock_bundle(image, tmp_path, CHUNKED, names, nearest)
    if message is None:
        assert error is None
        assert saved is not None
        assert len(np.unique(saved)) == 4
        return
    assert saved is None
    causes = []
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert any(message in cause and "Remove what does it once more" in cause for cause in causes)
    assert not list((tmp_path / "eval").rglob("*.nii.gz"))


def test_labels_that_are_inverted_linearly_are_called_another_answer(image: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"interpolated with mode=bilinear.*nearest_interp.*another answer"):
        run_stock_bundle(image, tmp_path, CHUNKED, ["Invertd"], False)


def test_a_stock_bundle_with_what_makes_labels_removed_saves_what_monai_saves(image: str, tmp_path: Path) -> None:
    """Where labels are inverted in the original too."""
    monai, _ = run_stock_bundle(image, tmp_path / "monai", {}, ["AsDiscreted", "Invertd"], True)
    ours, _ = run_stock_bundle(image, tmp_path / "ours", CHUNKED, ["Invertd"], True)
    assert ours is not None
    assert monai is not None
    assert np.array_equal(ours, monai)


# ---------------------------------------------------------------- what would destroy them


@pytest.mark.parametrize(
    ("destroy", "message"),
    [
        (AsDiscrete(argmax=True), "argmax over dimension 0"),
        (AsDiscrete(argmax=True, to_onehot=4), "argmax over dimension 0"),
        (Activations(softmax=True), "softmax over dimension 0"),
        (Activations(sigmoid=True), "sigmoid"),
        (lambda x: x.argmax(0, keepdim=True), "argmax over dimension 0"),
        (lambda x: torch.argmax(input=x, dim=-4), "argmax over dimension -4"),
        (lambda x: x.float().softmax(0), "softmax over dimension 0"),
        (lambda x: F.log_softmax(x.float(), dim=0), "softmax over dimension 0"),
        (lambda x: x.float().sigmoid(), "sigmoid"),
    ],
)
def test_what_makes_labels_of_scores_raises_on_labels(labels: Any, destroy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        destroy(labels[0])


@pytest.mark.parametrize(
    "between",
    [
        Flip(0),
        Spacing((2, 2, 2), mode="nearest"),
        Spacing((2, 2, 2)),
        Resize((4, 4, 4), mode="nearest"),
        Rotate(0.3),
        SpatialPad(12),
        CenterSpatialCrop(5),
        EnsureType(dtype=torch.float64),
        AsDiscrete(rounding="torchrounding"),
        copy.deepcopy,
        copy.copy,
        torch.Tensor.clone,
        lambda x: x.half().cpu().unsqueeze(0)[0],
        lambda x: decollate_batch(list_data_collate([{"pred": x}]))[0]["pred"],
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_labels_stay_labels_through_what_a_bundle_does_to_them(labels: Any, between: Any) -> None:
    image = between(labels[0])
    with pytest.raises(ValueError, match="argmax"):
        AsDiscrete(argmax=True)(image)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_output_are_guarded_and_say_so_in_their_metadata(kind: str, output: str) -> None:
    labels = labels_of(KINDS[kind](volume(2)), output=output)
    with pytest.raises(ValueError, match="argmax over dimension 1"):
        labels.argmax(1)
    if kind == "MetaTensor":
        assert labels.meta["holds_labels"] is True


def test_labels_in_files_are_guarded_too(tmp_path: Path) -> None:
    image = MetaTensor(volume(), meta={"filename_or_obj": "scan.nii"})
    labels = labels_of(image, output=NiftiOutput(tmp_path))
    assert labels.meta["holds_labels"] is True
    images = MetaTensor(
        volume(2), meta={"filename_or_obj": ["a.nii", "b.nii"], "affine": torch.eye(4)[None].repeat(2, 1, 1)}
    )
    images.is_batch = True
    for each in [labels[0], *labels_of(images, output=NiftiOutput(tmp_path))]:
        with pytest.raises(ValueError, match="argmax"):
            AsDiscrete(argmax=True)(each)


@pytest.mark.parametrize(
    "postprocessing",
    [
        AsDiscrete(argmax=True),
        Compose([Activations(softmax=True), Compose([AsDiscrete(argmax=True)])]),
        Compose([Activations(sigmoid=True), AsDiscrete(threshold=0.5)]),
        lambda scores: scores.argmax(0, keepdim=True),
    ],
)
def test_labels_and_masks_of_other_postprocessing_are_guarded_too(postprocessing: Any) -> None:
    (image,) = decollate_batch(labels_of(MetaTensor(volume()), postprocessing=postprocessing))
    with pytest.raises(ValueError, match="sigmoid"):
        Activations(sigmoid=True)(image)


@pytest.mark.parametrize("postprocessing", [None, Activations(softmax=True), AsDiscrete(argmax=True, to_onehot=4)])
def test_what_holds_scores_is_what_it_was(postprocessing: Any) -> None:
    for image, kind in ((volume(), torch.Tensor), (MetaTensor(volume()), MetaTensor)):
        scores = labels_of(image, postprocessing=postprocessing)
        assert type(scores) is kind
        assert "holds_labels" not in getattr(scores, "meta", {})
        AsDiscrete(argmax=True)(Activations(softmax=True)(scores[0]))


def test_of_several_outputs_those_that_hold_labels_are_guarded() -> None:
    inferer = ChunkedSlidingWindowInferer(6, postprocessing={"a": "argmax", "b": None})
    both = inferer(MetaTensor(volume()), lambda windows: {"a": network(windows), "b": network(windows)})
    assert type(both["b"]) is MetaTensor
    with pytest.raises(ValueError, match="argmax"):
        both["a"].argmax(1)


# ---------------------------------------------------------------- what must go on working


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_monai_in_everything_else(kind: str, tmp_path: Path) -> None:
    labels = labels_of(KINDS[kind](volume()))
    plain = labels.as_subclass(torch.Tensor)
    assert type(plain) is torch.Tensor
    assert torch.equal(labels, plain)
    assert np.array_equal(labels, plain.numpy())
    assert np.array_equal(labels.numpy(), plain.numpy())
    assert isinstance(labels, MetaTensor) == (kind == "MetaTensor")
    one = labels[0]
    assert torch.equal(AsDiscrete(to_onehot=4)(one), one_hot(plain[0], 4, dim=0))
    assert torch.equal(AsDiscrete(argmax=True)(AsDiscrete(to_onehot=4)(one)), plain[0].float())
    assert torch.equal(AsDiscrete(threshold=2)(one), (plain[0] >= 2).float())
    assert torch.equal(labels.argmax(2), plain.argmax(2))
    assert torch.equal(torch.argmax(labels), torch.argmax(plain))
    assert torch.equal(labels.unique(), plain.unique())
    assert torch.equal(labels == 2, plain == 2)
    for other in (torch.rand(8, 9, 10), MetaTensor(torch.rand(8, 9, 10)), torch.nn.Parameter(torch.rand(1))):
        assert torch.equal(labels * other, plain * other)
        assert torch.equal(other * labels, other * plain)
    assert torch.equal(torch.cat([MetaTensor(plain), labels]), torch.cat([plain, plain]))
    SaveImage(tmp_path, print_log=False, separate_folder=False)(one)
    (path,) = tmp_path.iterdir()
    assert np.array_equal(nibabel.load(path).get_fdata(), plain[0, 0].numpy())


def test_labels_are_stored_as_what_everybody_can_load(labels: Any) -> None:
    file = io.BytesIO()
    torch.save(labels, file)
    file.seek(0)
    for loaded in (torch.load(file), pickle.loads(pickle.dumps(labels))):
        assert type(loaded) in (torch.Tensor, MetaTensor)
        assert torch.equal(loaded, labels)
    if isinstance(labels, MetaTensor):
        assert loaded.meta["holds_labels"] is True


def test_nearest_interpolation_of_labels_is_no_warning(labels: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Resize((4, 4, 4), mode="nearest")(labels[0])
        F.interpolate(labels.float(), scale_factor=2)
        F.grid_sample(labels.float(), torch.zeros(1, 2, 2, 2, 3), mode="nearest", align_corners=False)
