"""What type checkers must make of results. Nothing here runs: mypy reads it along with the package."""

from __future__ import annotations

import torch

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer


class Network(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows


def one(windows: torch.Tensor) -> torch.Tensor:
    return windows


def two(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return windows, windows


def named(windows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"scores": windows}


def results_are_tensors(inferer: ChunkedSlidingWindowInferer, image: torch.Tensor) -> None:
    labels = inferer(image, Network())
    print(labels.shape, labels.numpy(), inferer(image, one).shape, inferer(image, lambda windows: windows).shape)
    wrong: str = inferer(image, Network())  # type: ignore[assignment]
    print(inferer(image, two)[1].shape, inferer(image, named)["scores"].shape, wrong)


def results_over_slices_have_a_shape(inferer: ChunkedSliceInferer, image: torch.Tensor) -> None:
    print(inferer(image, one).shape)
