"""MONAI's evaluator and ours, driven alike, and all that they leave compared; a helper."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Flipd, Invertd, SaveImaged, Spacingd

from monai_chunked import ChunkedEvaluator
from tests.formats.nifti_cases import files_in

WINDOWS: dict[str, Any] = {"roi_size": (6, 7, 6), "sw_batch_size": 2, "overlap": 0.25}
PREPROCESSING = Compose([Flipd("image", 0), Spacingd("image", (1.9, 2.4, 2.6))])
SOFTMAX = Activationsd("pred", softmax=True)
ARGMAX = AsDiscreted("pred", argmax=True)


def invert(preprocessing: Compose) -> Invertd:
    return Invertd("pred", preprocessing, "image", nearest_interp=False)


INVERT = invert(PREPROCESSING)


class Network(torch.nn.Sequential):
    def __init__(self, seed: int = 0, dims: int = 3) -> None:
        torch.manual_seed(seed)
        convolution = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
        super().__init__(convolution(1, 3, 3, padding=1), torch.nn.Dropout(0.2), convolution(3, 3, 1))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return super().forward(windows.to(torch.float32)).to(windows.dtype)


@cache
def images(*sizes: tuple[int, ...], preprocessing: Compose = PREPROCESSING) -> list[dict[str, MetaTensor]]:
    generator = torch.Generator().manual_seed(0)
    affine = torch.diag(torch.tensor([-1.5, 2, 3, 1], dtype=torch.float64))
    voxels = [torch.rand(1, *size, generator=generator) for size in sizes]
    items = [
        {"image": MetaTensor(each, affine, {"filename_or_obj": f"{k}.nii.gz"}), "label": (each > 0.5).float()}
        for k, each in enumerate(voxels)
    ]
    return [preprocessing(item) for item in items]


SIZE = (12, 10, 9)


def evaluator(kind: type, folder: Path, **options: Any) -> Any:
    save = SaveImaged("pred", output_dir=folder, output_ext=".nii", separate_folder=False, print_log=False)
    chain = Compose([*options.pop("saved", [SOFTMAX, INVERT, ARGMAX]), save])
    batch_size = options.pop("batch_size", 1)
    loader = DataLoader(Dataset(options.pop("data", images(SIZE, SIZE))), batch_size=batch_size)
    given = {"inferer": SlidingWindowInferer(**WINDOWS), "network": Network(), "postprocessing": chain, **options}
    engine = kind(device="cpu", val_data_loader=loader, **given)
    engine.handed = given  # the objects that were handed over
    return engine


def record(engine: Any, seen: list[Any]) -> None:
    """All that is left of each iteration."""
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append((engine.state.batch, engine.state.output))
    )


def assert_same(ours: Any, reference: Any, layout: bool = False) -> None:
    assert type(ours) is type(reference)
    if isinstance(reference, (list, tuple)):
        assert len(ours) == len(reference)
        for one, other in zip(ours, reference):
            assert_same(one, other, layout)
    elif isinstance(reference, dict):
        assert list(ours) == list(reference)
        for key in reference:
            assert_same(ours[key], reference[key], layout)
    elif isinstance(reference, torch.Tensor):
        assert (ours.dtype, ours.device) == (reference.dtype, reference.device)
        assert not layout or (ours.stride(), ours.requires_grad) == (reference.stride(), reference.requires_grad)
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(reference))
        if isinstance(reference, MetaTensor):
            assert ours.meta.keys() == reference.meta.keys()
            assert torch.equal(ours.affine, reference.affine)
            assert_same(ours.applied_operations, reference.applied_operations)
    elif isinstance(reference, np.ndarray):
        assert np.array_equal(ours, reference)
    else:
        assert ours == reference


def compare(
    folder: Path, drive: Callable[[Any], None], layout: bool = False, **options: Callable[[], Any]
) -> ChunkedEvaluator:
    """Drive both evaluators alike; the one in chunks, after a comparison of all that they leave.

    Args:
        folder: for what they save.
        drive: runs an evaluator.
        layout: whether strides are compared too.
        options: what makes their arguments.
    """
    seen: dict[type, list[Any]] = {ChunkedEvaluator: [], SupervisedEvaluator: []}
    engines = {}
    for kind, items in seen.items():
        made = {name: make() for name, make in options.items()}
        engine = engines[kind] = evaluator(kind, folder / kind.__name__, **made)
        record(engine, items)
        drive(engine)
    assert_same(seen[ChunkedEvaluator], seen[SupervisedEvaluator], layout)
    names = files_in(folder / "SupervisedEvaluator")
    assert files_in(folder / "ChunkedEvaluator") == names
    for name in names:
        one, other = (folder / kind.__name__ / name for kind in seen)
        assert one.read_bytes() == other.read_bytes()
    return engines[ChunkedEvaluator]
