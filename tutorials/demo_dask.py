"""The bundle of the demo on the workers of a Dask cluster on this machine; its file is that of the bundle itself.

    python -m tutorials.demo_dask

The image is loaded and resampled here. Workers do the rest chunk by chunk, the inverse to the patient's grid too, and
the labels are saved here.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from distributed import Client, LocalCluster
from monai.bundle import ConfigParser

from monai_chunked import split_postprocessing
from monai_chunked.dask import infer

ROOT = Path(__file__).resolve().parents[1]


def bundle(output_dir: str, resolution: float) -> ConfigParser:
    """``configs/inference.yaml``, whose objects are made as they are asked for."""
    config = ConfigParser()
    config.read_config(ROOT / "configs" / "inference.yaml")
    config.update({"bundle_root": str(ROOT), "output_dir": output_dir, "resolution": resolution})
    return config


def load_network() -> torch.nn.Module:
    """The bundle's network with its weights; called once in each worker."""
    config = bundle("eval", 1)
    network: torch.nn.Module = config.get_parsed_content("network_def")
    network.load_state_dict(torch.load(config.get_parsed_content("ckpt_path"), weights_only=True))
    return network.eval()


def label_template(output_dir: str, resolution: float, workers: int) -> None:
    """Label the template, and save the labels as the bundle does."""
    config = bundle(output_dir, resolution)
    (paths,) = config.get_parsed_content("data")
    data = config.get_parsed_content("preprocessing")(paths)
    streamed, behind = split_postprocessing(config.get_parsed_content("postprocessing"))
    inferer = config.get_parsed_content("inferer")
    inferer.postprocessing = streamed
    how = partial(LocalCluster, n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with how() as cluster, Client(cluster) as client:
        data["pred"] = infer(inferer, data["image"][None], load_network, client)[0]
    if behind is not None:  # saves them
        behind(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", default="eval", help="where the labels go (default: eval)")
    parser.add_argument("--resolution", type=float, default=1, help="side of a voxel of the template, in mm")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread (default: 2)")
    arguments = parser.parse_args()
    label_template(arguments.output_dir, arguments.resolution, arguments.workers)


if __name__ == "__main__":
    main()
