"""What brings chunks to the patient's grid works where they are, and what it makes stays there."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd

from monai_chunked.resampling.pieces import Piece, pieces
from monai_chunked.transforms.operations import resamplings
from monai_chunked.transforms.tracing import trace
from tests import toy_accelerator as toy

MAKE = {
    "scores": Piece.scores,
    "labels": Piece.labels,
    "masks": lambda piece, values: piece.at_least(values, 0.3),
}


def everything(nearest: bool, shape: tuple[int, ...] = (21, 18, 10)) -> tuple[torch.Tensor, list[Piece]]:
    """Scores of a volume, and how all of it is brought back."""
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    preprocessing = Compose([Orientationd("image", "RAS", labels=labels), Spacingd("image", (1.5, 1.5, 2))])
    affine = torch.tensor(np.diag([-1.2, -1.1, 2.5, 1]))
    image = preprocessing({"image": MetaTensor(torch.rand(1, *shape), affine)})["image"]
    invert = Invertd("pred", preprocessing, "image", nearest_interp=nearest)
    volume = torch.empty(image.shape, device="meta")
    undone = trace(volume, lambda prediction: invert({"pred": prediction, "image": image})["pred"])
    (resampling,) = resamplings(undone)
    size = image.shape[1:]
    chunks = resampling.over([(0, n) for n in size])
    torch.manual_seed(0)
    scores = (3 * torch.randn(5, *size)).softmax(0)
    return scores, pieces(resampling, chunks.of((0, 0, 0)), (0, 0, 0))


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_on_a_device_it_is_what_it_is_on_a_cpu(kind: str, nearest: bool) -> None:
    scores, every = everything(nearest)
    for piece in every:
        values = scores[(slice(None), *piece.read)]
        made = MAKE[kind](piece, values.to(toy.DEVICE))
        assert made.device == toy.DEVICE
        assert torch.equal(made.cpu(), MAKE[kind](piece, values))
