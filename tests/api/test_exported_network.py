"""A network that was exported to ONNX, between a window sampler and a chunk aggregator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from monai_chunked import ChunkAggregator, ChunkedSlidingWindowInferer, NiftiOutput, WindowSampler
from tests.side_by_side import random

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Any]:
    """A network, and a session of ONNX Runtime that runs it on the CPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1)).eval()
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    windows = torch.export.Dim("windows")
    shapes = ({0: windows},)
    torch.onnx.export(network, (torch.zeros(2, 1, 16, 16, 16),), path, input_names=["image"], dynamic_shapes=shapes)
    return network, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_an_exported_network_gives_what_it_gives_in_pytorch(exported: Any, tmp_path: Path) -> None:
    network, session = exported
    image = random(1, 1, 40, 33, 28)
    with torch.no_grad():
        expected = ChunkedSlidingWindowInferer(16, 4, 0.5, mode="gaussian")(image, network)

    sampler = WindowSampler(image, roi_size=16, overlap=0.5)
    with ChunkAggregator(sampler, mode="gaussian") as aggregator:
        for data, windows in DataLoader(sampler, batch_size=4, num_workers=2):
            aggregator.add_batch(session.run(None, {"image": data.numpy()}), windows)
        result = aggregator.finish()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)

    output = NiftiOutput(tmp_path, separate_folder=False)
    labels = ChunkAggregator(sampler, "gaussian", "argmax", output)
    for data, windows in DataLoader(sampler, batch_size=4):
        labels.add_batch(session.run(None, {"image": data.numpy()}), windows)
    saved = np.asarray(torch.as_tensor(labels.finish()))
    # where two scores are as good as equal, rounding may choose either
    assert (saved == expected.argmax(1, keepdim=True).numpy()).mean() > 0.999
