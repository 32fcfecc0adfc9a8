"""What may be asked of the inverse, what it says when it cannot, and what it costs then."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    Affined,
    AsDiscreted,
    BorderPadd,
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    Flipd,
    Invertd,
    Resized,
    ResizeWithPadOrCropd,
    Rotate90d,
    Rotated,
    Spacingd,
    SpatialCropd,
    SpatialPadd,
    Zoomd,
)

from monai_chunked import ChunkedSlidingWindowInferer, ImageInverse
from monai_chunked.transforms.inversion import MAKE
from tests.side_by_side import random
from tests.transforms.inverted import KEY, MAKERS, Case, affine_of, assert_same_images, assert_same_voxels, oriented

pytestmark = pytest.mark.usefixtures("one_thread")

AFFINE = affine_of("oblique", (1.1, 0.9, 1.7))
TRANSFORMS: dict[str, Any] = {
    "Orientation": lambda: oriented("LPS"),
    "Spacing": lambda: Spacingd(KEY, pixdim=(1.3, 1.0, 1.5)),
    "SpatialResample": lambda: MAKERS["affine"](First()),
    "ResampleToMatch": lambda: MAKERS["match"](First()),
    "Resize": lambda: Resized(KEY, (16, 22, 18), mode="trilinear"),
    "Zoom": lambda: Zoomd(KEY, zoom=1.2, mode="trilinear"),
    "Flip": lambda: Flipd(KEY, 1),
    "Flip of two": lambda: Flipd(KEY, (0, 2)),
    "Flip of all": lambda: Flipd(KEY),
    "Zoom of another size": lambda: Zoomd(KEY, zoom=0.7, keep_size=False, mode="area"),
    "Rotate90 back": lambda: Rotate90d(KEY, k=3, spatial_axes=(1, 2)),
    "Rotate90": lambda: Rotate90d(KEY, spatial_axes=(0, 2)),
    "Rotate": lambda: Rotated(KEY, angle=(0.1, 0.0, 0.0)),
    "CropForeground": lambda: CropForegroundd(KEY, KEY, select_fn=lambda x: x > 0.9, k_divisible=4),
    "ResizeWithPadOrCrop": lambda: ResizeWithPadOrCropd(KEY, (14, 30, 20)),
    "SpatialPad": lambda: SpatialPadd(KEY, (24, 20, 30)),
    "BorderPad": lambda: BorderPadd(KEY, 2),
    "CenterSpatialCrop": lambda: CenterSpatialCropd(KEY, (12, 14, 15)),
}


class First:
    """Draws the first of what there is."""

    def __call__(self, strategy: Any) -> Any:
        return getattr(strategy, "elements", (False,))[0]


def case_of(*transforms: Any, **options: Any) -> Case:
    return Case(list(transforms) or [oriented(), TRANSFORMS["Spacing"]()], (15, 18, 16), AFFINE, **options)


def ours(case: Case, inputs: Any = None, **parameters: Any) -> Any:
    with torch.no_grad():
        inferer = ChunkedSlidingWindowInferer(**case.sliding, **parameters)
        return inferer(case.batch[KEY] if inputs is None else inputs, case.network)


def test_all_that_can_be_undone_is_tested() -> None:
    assert set(MAKE) <= set(TRANSFORMS)


@pytest.mark.filterwarnings("ignore:the prediction is brought")
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_operations_of_an_image_are_undone_as_by_its_transforms(name: str, nearest: bool) -> None:
    case = case_of(TRANSFORMS[name](), nearest=nearest, images=2)
    inverse: Any = ImageInverse(nearest_interp=True) if nearest else "image"
    reference = case.monai()
    assert_same_images(ours(case, inverse=inverse), reference)
    assert_same_images(ours(case, inverse=case.invert), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_dictionary_transforms_come_behind_the_inverse_that_is_given_beside_them(dtype: torch.dtype) -> None:
    ends = [Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True, dtype=dtype)]
    case = case_of(after=ends)
    assert_same_images(ours(case, inverse="image", postprocessing=ends), case.monai())


def test_the_image_stays_what_it_is() -> None:
    case = case_of()
    before = deepcopy(case.batch[KEY].applied_operations)
    ours(case, inverse="image")
    assert str(case.batch[KEY].applied_operations) == str(before)


@pytest.mark.parametrize(
    "transform",
    [Rotated(KEY, angle=(0.1, 0.0, 0.0)), Affined(KEY, rotate_params=(0.1, 0.0, 0.0))],
    ids=["Rotate", "Affine"],
)
def test_what_needs_the_whole_prediction_says_so_once(transform: Any) -> None:
    case = case_of(transform, after=[AsDiscreted("pred", argmax=True)], before=[Activationsd("pred", softmax=True)])
    reference = case.monai()
    with pytest.warns(UserWarning, match="as a whole") as caught:
        result = case.ours()
    messages = [str(each.message) for each in caught if "as a whole" in str(each.message)]
    assert len(messages) == 1
    assert f"because the inverse of {type(transform).__name__}" in messages[0]
    assert "about C (12 n + 8 m) + 24 m bytes" in messages[0]
    assert caught[0].filename == __file__ or "inverted" in caught[0].filename
    assert_same_images(result, reference)


def test_scores_in_float64_are_inverted_whole() -> None:
    case = case_of()
    image = case.batch[KEY].double()
    network = case.network.double()
    with torch.no_grad():
        scores = SlidingWindowInferer(**case.sliding)(image, network)
        reference = case.invert({"pred": MetaTensor(scores[0].as_tensor()), KEY: image[0]})["pred"]
        with pytest.warns(UserWarning, match=r"scores are torch\.float64"):
            result = ours(case, image, postprocessing=case.invert)
    assert_same_voxels(result[0], reference)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_labels_may_be_inverted_by_the_nearest_voxel(dtype: torch.dtype) -> None:
    case = case_of(before=[AsDiscreted("pred", argmax=True, dtype=dtype)], nearest=True)
    assert_same_images(case.ours(), case.monai())


def test_images_of_other_sizes_are_for_batches_of_one() -> None:
    items = []
    for size in ((20, 18, 16), (20, 19, 16)):
        image = MetaTensor(torch.rand(1, *size), affine=affine_of("plain", (1.0, 1.0, 1.0)))
        items.append(Resized(KEY, (16, 16, 16), mode="trilinear")({KEY: image}))
    case = case_of()
    with pytest.raises(ValueError, match="batch_size: 1"):
        ours(case, list_data_collate(items)[KEY], inverse="image")


def first_ones(image: MetaTensor, number: int) -> MetaTensor:
    """Of the same voxels, in a file whose affine has other last bits."""
    noise = 1 + number * 1e-14 * random(4, 4, seed=number).double()
    return MetaTensor(image, affine=image.affine * noise)


EACH: dict[str, Callable[[MetaTensor, int], Any]] = {
    "padded": lambda image, number: BorderPadd(KEY, (3 * number, 3 - 3 * number, 0, 0, 0, 0))({KEY: image}),
    "flipped": lambda image, number: Compose([Flipd(KEY, number), Resized(KEY, [16] * 3, mode="trilinear")])(
        {KEY: image}
    ),
    "cropped": lambda image, number: Compose(
        [
            Spacingd(KEY, pixdim=(1.3, 1.5, 1.1)),
            SpatialCropd(KEY, roi_start=(2 * number, 0, 1), roi_end=(14, 12, 16)),
            Resized(KEY, [16] * 3, mode="trilinear"),
        ]
    )({KEY: image}),
    "turned": lambda image, number: Rotate90d(KEY, k=1 + 2 * number)({KEY: image}),
    "other last bits": lambda image, number: Spacingd(KEY, pixdim=(2, 1, 1.5))({KEY: first_ones(image, number)}),
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("output", ["auto", "disk"])
def test_each_image_of_a_batch_may_lie_elsewhere_in_its_grid(
    name: str, chunk_size: int | None, output: str, tmp_path: Path
) -> None:
    images = [MetaTensor(random(1, 20, 20, 20, seed=seed), affine=affine_of("plain", (1.0,) * 3)) for seed in (0, 1)]
    batch = list_data_collate([EACH[name](image, number) for number, image in enumerate(images)])[KEY]
    case = case_of()
    how: dict[str, Any] = {} if output == "auto" else {"output": output, "output_dir": tmp_path}
    with warnings.catch_warnings(record=True) as caught:
        results = ours(case, batch, inverse="image", chunk_size=chunk_size, **how)
    assert any("with batch_size: 1" in str(each.message) for each in caught) == (name == "cropped")
    with torch.no_grad():
        scores = SlidingWindowInferer(**case.sliding)(batch, case.network)
    reference = [ImageInverse()(*pair) for pair in zip(decollate_batch(batch), decollate_batch(scores))]
    assert_same_images(results, reference)


@pytest.mark.parametrize(
    ("inverse", "error", "message"),
    [
        ("images", TypeError, "inverse='images' must be 'image'"),
        (3, TypeError, "inverse=3 must be 'image'"),
        (ImageInverse, TypeError, "must be 'image'"),
        (Invertd(["a", "b"], Compose([]), orig_keys=KEY), ValueError, "give one key each"),
    ],
)
def test_an_inverse_of_a_wrong_type_is_refused(inverse: Any, error: type[Exception], message: str) -> None:
    case = case_of()
    with pytest.raises(error, match=message):
        ours(case, inverse=inverse)
    assert case.network.predicted == 0


def test_one_inverse_is_enough() -> None:
    case = case_of()
    with pytest.raises(ValueError, match="choose one"):
        ours(case, inverse="image", postprocessing=case.chain)
    with pytest.raises(ValueError, match="Invertd 2 times"):
        ours(case, postprocessing=[case.invert, case.invert])


def test_an_input_that_does_not_say_what_was_done_to_it_is_refused() -> None:
    case = case_of()
    for inputs in (case.batch[KEY].as_tensor(), case.batch[KEY].numpy()):
        with pytest.raises(ValueError, match="no metadata"):
            ours(case, inputs, inverse="image")
    assert case.network.predicted == 0


def test_pending_operations_are_refused() -> None:
    case = case_of()
    image = MetaTensor(torch.rand(1, 20, 18, 16), affine=affine_of("plain", (1.0, 1.0, 1.0)))
    lazy = Spacingd(KEY, pixdim=(1.5, 1.5, 1.5), lazy=True)({KEY: image})[KEY]
    with pytest.raises(ValueError, match=r"pending operations.*ApplyPendingd"):
        ours(case, lazy[None], inverse="image")
    assert case.network.predicted == 0


def test_an_operation_that_has_no_known_inverse_is_named() -> None:
    case = case_of(Affined(KEY, rotate_params=(0.1, 0.0, 0.0)))
    with pytest.raises(ValueError, match=r"does not know how to undo Affine.*it knows Orientation, Spacing"):
        ours(case, inverse="image")
    assert case.network.predicted == 0


def test_the_transforms_of_another_image_are_refused_as_by_monai() -> None:
    case = case_of()
    other = Invertd("pred", Compose([oriented(), TRANSFORMS["Spacing"]()]), orig_keys=KEY)
    item = {"pred": MetaTensor(torch.zeros(3, *case.batch[KEY].shape[2:])), KEY: case.batch[KEY][0]}
    with pytest.raises(RuntimeError):
        other(dict(item))
    with pytest.raises(RuntimeError):
        ours(case, postprocessing=other)
    assert case.network.predicted == 0


@pytest.mark.parametrize("postprocessing", ["argmax", lambda chunk: chunk.argmax(0, keepdim=True).to(torch.uint8)])
def test_labels_are_made_on_the_grid_of_the_patient(postprocessing: Any) -> None:
    case = case_of()
    (scores,) = case.monai()
    labels = ours(case, inverse="image", postprocessing=postprocessing)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels[0].as_tensor().long(), scores.as_tensor().argmax(0, keepdim=True))
    assert np.allclose(labels.affine, AFFINE)


def test_undoing_does_not_wait_for_the_compiler_of_pytorch_to_be_imported(python: Callable[..., Any]) -> None:
    program = (
        "import sys\n"
        "from tests.transforms.test_inverse_calls import Spacingd, KEY, case_of\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "case_of(Spacingd(KEY, pixdim=1.5)).ours()\n"
        "print(before, 'torch._dynamo' in sys.modules)"
    )
    done = python(program)
    assert done.stdout == "False False\n"
