"""What happens to windows that are skipped: nothing is read twice, heads are learned, errors say what would fit."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_chunked import (
    ChunkedSliceInferer,
    ChunkedSlidingWindowInferer,
    NumpyOutput,
    Observer,
    ZarrOutput,
    open_image,
)
from monai_chunked.__main__ import main
from monai_chunked.chunks.background import backgrounds_of
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.plan.window_grid import Window
from tests.windows.skipping import Boom, Network, heads_of

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

SIZE = (24, 10, 12)


def image() -> torch.Tensor:
    x = torch.zeros(1, 1, *SIZE)
    x[..., 9:14, 3:5, 2:9] = 1
    return x


class Reads:
    """An array that counts how often each voxel is read, and from which threads."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self.shape, self.dtype = self.array.shape, self.array.dtype
        self.counts = np.zeros(self.shape, int)
        self.threads: set[str] = set()

    def __getitem__(self, index: Any) -> np.ndarray:
        self.counts[index] += 1
        self.threads.add(threading.current_thread().name)
        return self.array[index]


@pytest.mark.parametrize("skip", [0, 5], ids=["some", "all"])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_what_is_read_to_be_looked_at_is_read_once_and_ahead(skip: float, sw_batch_size: int) -> None:
    reads, network = Reads(image()), Network([2])
    ChunkedSlidingWindowInferer(6, sw_batch_size, 0.5, skip=skip)(reads, network)
    assert (reads.counts == 1).all()
    assert (network.seen == 1) == (skip == 5)
    assert skip == 5 or any(name.startswith("monai_chunked-read") for name in reads.threads)


def test_of_a_lazy_input_only_rows_under_the_mask_are_read_and_of_the_mask_each_voxel_once() -> None:
    reads, mask, network = Reads(image()), Reads(image().numpy()[0, 0] > 0), Network([2])
    ours = ChunkedSlidingWindowInferer(6, 1, 0.5, mask=mask)(reads, network)
    assert (mask.counts == 1).all()
    assert reads.counts.max() == 1
    assert not reads.counts[:, :, :6].any()
    assert torch.equal(ours, ChunkedSlidingWindowInferer(6, 1, 0.5, skip=0)(image(), network))


@pytest.mark.parametrize("lacks", [0, 1, 2])
@pytest.mark.parametrize("kind", ["tensor", "numpy", "memmap", "zarr", "open_image"])
def test_masks_of_any_kind(kind: str, lacks: int, tmp_path: Path) -> None:
    mask = (image() > 0).to(torch.uint8)[(0,) * lacks]
    given: Any = mask
    if kind == "numpy":
        given = mask.numpy()
    elif kind == "memmap":
        np.save(tmp_path / "mask.npy", mask.numpy())
        given = np.load(tmp_path / "mask.npy", mmap_mode="r")
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr")
        given = zarr.create_array(tmp_path / "mask.zarr", data=mask.numpy(), chunks=(4,) * mask.ndim)
    elif kind == "open_image":
        nibabel.save(nibabel.Nifti1Image(image()[0, 0].numpy().astype(np.uint8), np.eye(4)), tmp_path / "mask.nii")
        given = open_image(tmp_path / "mask.nii")
    network, expected = Network([2]), Network([2])
    ours = ChunkedSlidingWindowInferer(6, 2, 0.5, mask=given, output=NumpyOutput(tmp_path), network_id="n")(
        image(), network
    )
    assert torch.equal(ours, ChunkedSlidingWindowInferer(6, 2, 0.5, skip=0)(image(), expected))
    assert network.seen == expected.seen
    with pytest.warns(UserWarning, match="is returned as an earlier run finished it"):
        ChunkedSlidingWindowInferer(6, 2, 0.5, mask=given, output=NumpyOutput(tmp_path), network_id="n")(
            image(), network
        )


def test_if_all_is_skipped_one_window_shows_the_heads() -> None:
    network = Network([2, 1])
    first, second = ChunkedSlidingWindowInferer(6, 4, 0.5, skip=1, background=([1, 2], 3))(image(), network)
    assert (network.calls, network.seen) == (1, 1)
    assert first.shape == (1, 2, *SIZE)
    assert torch.equal(first, torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1).expand(first.shape))
    assert torch.equal(second, torch.full((1, 1, *SIZE), 3.0))


def test_a_window_is_skipped_if_mask_or_callable_says_so_and_the_callable_is_not_asked_of_the_others() -> None:
    asked = []
    mask = torch.zeros(SIZE)
    mask[:12] = 1

    def skip(window: torch.Tensor) -> bool:
        asked.append(window)
        return not bool(window.any())

    network = Network([1])
    ChunkedSlidingWindowInferer(6, 1, 0, skip=skip, mask=mask)(image(), network)
    assert len(asked) == 2 * 2 * 2
    assert network.seen == 1 * 2 * 2
    assert all(window.shape == (1, 6, 6, 6) for window in asked)


def test_the_callable_sees_what_the_network_sees_preprocessed_and_padded() -> None:
    asked, seen = [], []
    ChunkedSlidingWindowInferer(
        (6, 6, 16), cval=7, preprocessing=lambda x: x + 3, skip=lambda window: bool(asked.append(window.clone()))
    )(image(), lambda windows: seen.append(windows.clone()) or windows)
    assert torch.equal(torch.stack(asked), torch.cat(seen))
    assert asked[0].max() == 7
    assert asked[0].min() == 3


def test_windows_that_are_predicted_fill_the_batches_also_over_the_images_of_a_batch() -> None:
    sizes = []
    x = image().repeat(3, 1, 1, 1, 1)
    ChunkedSlidingWindowInferer(6, 4, 0.5, skip=0)(x, lambda windows: sizes.append(len(windows)) or windows)
    assert set(sizes[:-1]) == {4}


def test_slices_are_skipped_by_a_mask_of_the_volume() -> None:
    network = torch.nn.Conv2d(1, 2, 1)
    seen: list[int] = []

    def counted(windows: torch.Tensor) -> torch.Tensor:
        seen.append(len(windows))
        return network(windows)

    given: dict[str, Any] = {"spatial_dim": 0, "roi_size": SIZE[1:]}
    ours = ChunkedSliceInferer(**given, mask=image()[0, 0] > 0, background=-1)(image(), counted)
    assert sum(seen) == 14 - 9
    expected = ChunkedSliceInferer(**given)(image(), network)
    expected[:, :, :9], expected[:, :, 14:] = -1, -1
    assert torch.equal(ours, expected)


def test_the_command_plans_with_a_mask(tmp_path: Path, capsys: Any) -> None:
    nibabel.save(nibabel.Nifti1Image(image()[0, 0].numpy().astype(np.uint8), np.eye(4)), tmp_path / "mask.nii")
    size = list(map(str, SIZE))
    arguments = ["plan", "--image-size", *size, "--roi-size", "6", "--overlap", "0", "--classes", "2"]
    assert main([*arguments, "--mask", str(tmp_path / "mask.nii")]) == 0
    assert "8 of the windows, which have no voxel of the mask" in capsys.readouterr().out
    assert main([*arguments[:2], "24", "10", "11", *arguments[5:], "--mask", str(tmp_path / "mask.nii")]) == 2
    assert "mask of shape (1, 1, 24, 10, 12) does not match" in capsys.readouterr().err


def test_of_a_zarr_store_zeros_of_skipped_windows_are_not_written(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    stored = {}
    for background in (0, 1):
        folder = tmp_path / str(background)
        output = ZarrOutput(folder, storage_chunk_size=2)
        inferer = ChunkedSlidingWindowInferer(6, 1, 0.5, skip=0, background=background, output=output)
        inferer(image(), torch.nn.Conv3d(1, 2, 1))
        stored[background] = sum("c" in path.parts and path.is_file() for path in folder.rglob("*"))
    assert stored[1] == 2 * 12 * 5 * 6
    assert 0 < stored[0] < stored[1]


def test_backgrounds_of_heads_with_names() -> None:
    network = Network([2, 1])

    def named(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip("ba", network(windows)))

    ours = ChunkedSlidingWindowInferer(6, skip=1, background={"a": 5, "b": [1, -1]})(image(), named)
    assert ours["a"].unique().tolist() == [5]
    assert ours["b"].unique(dim=1).flatten().unique().tolist() == [-1, 1]


def test_gradients_are_those_of_monai_with_a_network_that_returns_the_background() -> None:
    def gradients(inferer: Any, background: bool) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Conv3d(1, 2, 3, padding=1)

        def replacing(windows: torch.Tensor) -> torch.Tensor:
            return network(windows) if windows.any() else torch.full_like(network(windows), 0.3)

        inferer(image(), replacing if background else network).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    with torch.enable_grad():
        ours = gradients(ChunkedSlidingWindowInferer(6, 1, 0.5, "gaussian", skip=0, background=0.3), False)
        reference = gradients(SlidingWindowInferer(6, 1, 0.5, "gaussian"), True)
    assert torch.equal(ours, reference)
    assert ours.any()


def test_a_run_goes_on_only_with_the_same_skip_mask_and_background(tmp_path: Path) -> None:
    mask = image()[0, 0] > 0
    given: dict[str, Any] = {"skip": 0, "mask": mask, "background": 1}
    with pytest.raises(Boom):
        ChunkedSlidingWindowInferer(6, 1, 0.5, **given, output=NumpyOutput(tmp_path), network_id="n")(
            image(), Network([2], fails_at=20)
        )
    other = mask.clone()
    other[0] = True
    for changed in ({"skip": 0.5}, {"mask": other}, {"background": [1, 2]}):
        inferer = ChunkedSlidingWindowInferer(
            6, 1, 0.5, **{**given, **changed}, output=NumpyOutput(tmp_path), network_id="n"
        )
        with pytest.raises(FileExistsError, match=f"what differs: {next(iter(changed))}"):
            inferer(image(), Network([2]))
    whole, rest = Network([2]), Network([2])
    expected = ChunkedSlidingWindowInferer(6, 1, 0.5, **given)(image(), whole)
    ours = ChunkedSlidingWindowInferer(6, 1, 0.5, **given, output=NumpyOutput(tmp_path), network_id="n")(image(), rest)
    assert torch.equal(ours, expected)
    assert rest.seen < whole.seen


def test_a_resumed_run_of_which_only_skipped_windows_are_left_asks_about_one(tmp_path: Path) -> None:
    class Failing(Observer):
        def window(self, window: Window, predicted: bool, stitcher: Stitcher) -> None:
            if window.position == (5,):
                raise Boom

    x = torch.zeros(1, 1, 30)
    x[..., :4] = 1
    given: dict[str, Any] = {"skip": 0, "background": 2, "network_id": "n"}
    with pytest.raises(Boom):
        ChunkedSlidingWindowInferer(4, overlap=0, **given, output=NumpyOutput(tmp_path), progress=Failing())(
            x, Network([1])
        )
    network, whole = Network([1]), Network([1])
    ours = ChunkedSlidingWindowInferer(4, overlap=0, **given, output=NumpyOutput(tmp_path))(x, network)
    assert network.seen == 1
    assert torch.equal(ours[..., 4:], torch.full((1, 1, 26), 2.0))
    assert torch.equal(ours, ChunkedSlidingWindowInferer(4, overlap=0, **given)(x, whole))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"skip": "air"}, TypeError, "skip='air' must be a callable .* a number .* or None"),
    ({"skip": True}, TypeError, "skip=True must be a callable"),
    ({"skip": torch.nn.Identity}, TypeError, "must be a callable that maps what the network would get"),
    ({"skip": lambda w: w.sum()}, TypeError, r"must return a bool .* of type float .*image 0 \[0:6, 0:6, 0:6\]"),
    ({"skip": lambda w: w > 0}, TypeError, r"must return a bool .* got shape \(1, 6, 6, 6\) of type Tensor"),
    ({"skip": lambda w: None}, TypeError, "must return a bool .* got None of type NoneType"),
    ({"skip": lambda w: 1 / 0}, ZeroDivisionError, r"while asking whether to skip window image 0 \[0:6"),
    ({"mask": [1, 2]}, TypeError, r"mask must be a tensor, or an array .* size \(24, 10, 12\), got list"),
    ({"mask": torch.ones(24, 10, 11)}, ValueError, r"of shape \(24, 10, 11\) .* must have shape \(24, 10, 12\)"),
    ({"mask": torch.ones(10, 12)}, ValueError, r"mask of shape \(10, 12\) does not match inputs"),
    ({"mask": torch.ones(2, 1, *SIZE)}, ValueError, r"the batch \(1\) before that"),
    ({"mask": np.ones(SIZE, complex)}, TypeError, "mask must be real"),
    ({"background": "air"}, TypeError, "background='air' must be a number, or one for each channel"),
    ({"background": []}, TypeError, r"background=\[\] must be a number"),
    ({"background": {"a": None}}, TypeError, "background=.* must be a number"),
    ({"background": [1, 2, 3]}, ValueError, r"=\[1, 2, 3\] has 3 numbers but the prediction has 2 channels"),
    ({"background": {"a": 1}}, ValueError, r"is for the outputs \['a'\] but the network has 1 output\(s\)"),
]


@pytest.mark.parametrize(("parameters", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(parameters: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        ChunkedSlidingWindowInferer(6, **{"skip": 0, **parameters})(image(), Network([2]))


def test_backgrounds_that_do_not_fit_several_heads_are_refused() -> None:
    heads = heads_of([2, 1], (6, 6))
    message = "background=(1, 2, 3) has 3 entries but the network has 2 outputs; give one for each, or one number"
    with pytest.raises(ValueError, match=re.escape(message)):
        backgrounds_of(heads, (1, 2, 3))
    with pytest.raises(ValueError, match="has 2 numbers but the prediction-1 has 1 channels"):
        backgrounds_of(heads, (1, [2, 3]))
    with pytest.raises(ValueError, match=r"background is for the outputs \['a'\] but the network has the outputs"):
        backgrounds_of(replace(heads, keys=("a", "b")), {"a": 1})
    assert [each.tolist() for each in backgrounds_of(heads, (1, [2]))] == [[1, 1], [2]]
    assert [each.tolist() for each in backgrounds_of(heads, torch.tensor(4))] == [[4, 4], [4]]


def test_a_bool_of_numpy_or_torch_is_one() -> None:
    for skip in (lambda w: np.bool_(not w.any()), lambda w: torch.tensor(not w.any()), lambda w: ~w.any()):
        network = Network([1])
        ChunkedSlidingWindowInferer(6, skip=skip)(image(), network)
        assert network.seen == 18
