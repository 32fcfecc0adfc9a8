"""What inferers return inside MONAI's engines is taken apart into one item for each image, whatever the output is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
)

from monai_chunked import ChunkedSlidingWindowInferer, NiftiOutput, NumpyOutput, ZarrOutput, open_image
from monai_chunked.outputs.stored_images import StoredTensor
from tests.outputs.cases import SETTINGS, network

AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1.0]])
OUTPUTS: dict[str, Callable[[Path], Any]] = {
    "auto": lambda folder: "auto",
    "memory": lambda folder: "cpu",
    "disk": lambda folder: "disk",
    "npy": NumpyOutput,
    "nii": NiftiOutput,
    "nii.gz": lambda folder: NiftiOutput(folder, output_ext=".nii.gz"),
    "zarr": ZarrOutput,
    "zarr with levels": lambda folder: ZarrOutput(folder, levels=2),
}


class Network(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return network(windows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("data")
    for name in "abc":
        voxels = np.random.default_rng(ord(name)).random((9, 10, 11), np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), folder / f"{name}.nii.gz")
    return [{"image": str(folder / f"{name}.nii.gz"), "label": str(folder / f"{name}.nii.gz")} for name in "abc"]


PREPROCESSING = Compose(
    [
        LoadImaged(["image", "label"]),
        EnsureChannelFirstd(["image", "label"]),
        Orientationd(["image", "label"], axcodes="RAS", labels=None),
    ]
)


def postprocessing(folder: Path) -> Compose:
    """Of many a bundle: back to the patient's grid, then labels, then a file."""
    return Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", PREPROCESSING, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=folder, output_postfix="seg", separate_folder=False, print_log=False),
        ]
    )


def evaluate(
    inferer: Inferer, data: list[dict[str, str]], batch_size: int, chain: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """The items of all batches; those of the last one are three images or one."""
    seen: list[dict[str, Any]] = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data, PREPROCESSING), batch_size=batch_size),
        network=Network(),
        inferer=inferer,
        postprocessing=chain,
        **options,
    )
    evaluator.add_event_handler("ITERATION_COMPLETED", lambda engine: seen.extend(engine.state.output))
    evaluator.run()
    return seen


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_evaluator_gets_one_item_for_each_image(
    name: str, batch_size: int, data: list[dict[str, str]], tmp_path: Path
) -> None:
    items = evaluate(ChunkedSlidingWindowInferer(**SETTINGS, output=OUTPUTS[name](tmp_path)), data, batch_size)
    expected = evaluate(SlidingWindowInferer(**SETTINGS), data, batch_size)
    assert len(items) == len(expected) == 3
    for item, reference in zip(items, expected):
        ours, theirs = item["pred"], reference["pred"]
        assert isinstance(ours, MetaTensor)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert torch.equal(ours.as_tensor(), theirs.as_tensor())
        assert ours.meta["filename_or_obj"] == theirs.meta["filename_or_obj"]
        assert torch.equal(ours.affine, theirs.affine)
        assert len(ours.applied_operations) == len(theirs.applied_operations) == 1


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", OUTPUTS)
def test_postprocessing_of_an_evaluator_writes_the_files_that_it_writes_behind_monais_inferer(
    name: str, batch_size: int, data: list[dict[str, str]], tmp_path: Path
) -> None:
    for folder in ("outputs", "ours", "monai"):
        (tmp_path / folder).mkdir()
    ours = ChunkedSlidingWindowInferer(**SETTINGS, output=OUTPUTS[name](tmp_path / "outputs"))
    items = evaluate(ours, data, batch_size, postprocessing(tmp_path / "ours"))
    expected = evaluate(SlidingWindowInferer(**SETTINGS), data, batch_size, postprocessing(tmp_path / "monai"))
    for item, reference in zip(items, expected, strict=True):
        assert torch.equal(item["pred"], reference["pred"])
    for letter in "abc":
        file, reference = (nibabel.load(tmp_path / side / f"{letter}_seg.nii.gz") for side in ("ours", "monai"))
        assert np.array_equal(np.asanyarray(file.dataobj), np.asanyarray(reference.dataobj))
        assert np.array_equal(file.affine, reference.affine)
        assert len(np.unique(np.asanyarray(file.dataobj))) > 1


@pytest.mark.parametrize("name", ["nii", "zarr"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_labels_reach_metrics(name: str, batch_size: int, data: list[dict[str, str]], tmp_path: Path) -> None:
    def dice(inferer: Inferer, chain: Any) -> float:
        metric = MeanDice(include_background=True, output_transform=from_engine(["pred", "label"]))
        found: list[float] = []
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(data, PREPROCESSING), batch_size=batch_size),
            network=Network(),
            inferer=inferer,
            postprocessing=chain,
            key_val_metric={"dice": metric},
        )
        evaluator.add_event_handler("COMPLETED", lambda engine: found.append(engine.state.metrics["dice"]))
        evaluator.run()
        return found[0]

    def one_hot(**options: Any) -> Compose:
        return Compose([AsDiscreted("pred", to_onehot=3, **options), AsDiscreted("label", threshold=0.5, to_onehot=3)])

    output = OUTPUTS[name](tmp_path)
    ours = ChunkedSlidingWindowInferer(**SETTINGS, output=output, postprocessing="argmax")
    assert dice(ours, one_hot()) == dice(SlidingWindowInferer(**SETTINGS), one_hot(argmax=True))


@pytest.mark.parametrize("name", ["nii", "zarr"])
def test_a_result_that_an_earlier_run_finished_is_taken_apart_too(
    name: str, data: list[dict[str, str]], tmp_path: Path
) -> None:
    first, again = (
        evaluate(ChunkedSlidingWindowInferer(**SETTINGS, output=OUTPUTS[name](tmp_path)), data, 2) for _ in range(2)
    )
    for item, other in zip(first, again, strict=True):
        assert torch.equal(item["pred"], other["pred"])


class Two(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return windows + 1, windows * 2


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", OUTPUTS)
def test_several_outputs_of_a_network_are_taken_apart_together(name: str, images: int, tmp_path: Path) -> None:
    inputs = torch.rand((images, 1, 9, 10, 11))
    ours = ChunkedSlidingWindowInferer(**SETTINGS, output=OUTPUTS[name](tmp_path))(inputs, Two())
    theirs = decollate_batch(SlidingWindowInferer(**SETTINGS)(inputs, Two()))
    for item, reference in zip(decollate_batch(ours), theirs, strict=True):
        assert all(torch.equal(torch.as_tensor(one), other) for one, other in zip(item, reference, strict=True))


# ---------------------------------------------------------------- outside engines


def test_outside_engines_a_store_is_a_zarr_array_and_several_are_a_list(tmp_path: Path) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, output=ZarrOutput(tmp_path))
    array = inferer(torch.rand(1, 1, 9, 10, 11), Network())
    assert isinstance(array, zarr.Array)
    assert (array.shape, array[0].shape) == ((3, 9, 10, 11), (9, 10, 11))
    arrays = inferer(torch.rand(2, 1, 9, 10, 11), Network())
    assert isinstance(arrays, list)
    assert [type(each) is type(array) for each in arrays] == [True, True]


class Counted:
    """An array that counts how often it is read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.reads += 1
        return self.array


def test_voxels_of_a_store_are_read_only_when_an_operation_needs_them() -> None:
    counted = Counted(np.random.default_rng(0).random((2, 3, 4, 5), np.float32))
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1]))
    template = MetaTensor(torch.zeros(0), affine=affine, meta={"filename_or_obj": "a"})
    stored = StoredTensor(counted, template)
    assert (stored.shape, stored.dtype, stored.ndim, len(stored)) == ((2, 3, 4, 5), torch.float32, 4, 2)
    assert (stored.numel(), stored.size(1), stored.device.type, stored.is_floating_point()) == (120, 3, "cpu", True)
    assert stored.meta["filename_or_obj"] == "a"
    assert counted.reads == 0

    expected = MetaTensor(torch.from_numpy(counted.array)).copy_meta_from(template)
    operations: list[Callable[[torch.Tensor], Any]] = [
        *(lambda t: t.argmax(0), lambda t: t + 1, lambda t: 2 * t, lambda t: t[1], lambda t: torch.stack([t, t])),
        *(lambda t: t.numpy(), lambda t: np.asarray(t), lambda t: torch.as_tensor(t).clone(), lambda t: t.as_tensor()),
        *(lambda t: MetaTensor(t), lambda t: t.to(torch.float64), lambda t: copy.deepcopy(t), lambda t: t.sum().item()),
        *(lambda t: t.permute(1, 0, 2, 3).tolist(), lambda t: torch.unbind(t)[1], lambda t: next(iter(t.clone()))),
    ]
    for number, operation in enumerate(operations, start=1):
        ours, theirs = operation(stored), operation(expected)
        assert counted.reads >= number
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        if isinstance(theirs, MetaTensor):
            assert ours.meta["filename_or_obj"] == "a"
            assert torch.equal(ours.affine, theirs.affine)


def test_an_opened_image_gives_items_with_its_metadata(data: list[dict[str, str]], tmp_path: Path) -> None:
    image = open_image(data[0]["image"])
    (item,) = decollate_batch(ChunkedSlidingWindowInferer(**SETTINGS, output=ZarrOutput(tmp_path))(image, Network()))
    assert item.meta["filename_or_obj"] == data[0]["image"]
    assert torch.equal(item.affine, torch.as_tensor(AFFINE))
