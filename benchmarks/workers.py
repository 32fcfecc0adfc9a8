"""
How well are several workers used? One volume of eight layers of windows, by one process and by several of one thread.

    python -m benchmarks.workers

The efficiency of n workers is the time of one over n times theirs. One network is a real one, whose time is the
machine's: it needs a processor for each worker. The other one sleeps, as a process does that waits for a GPU, so that
what is measured is how the volume is shared. Chunks between two parts are handed on, from process to process of
torchrun, or from task to task of Dask. Bytes are those of all workers.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import ROOT, Check
from benchmarks.peers import unet
from benchmarks.report import RESULTS, checks_table, machine, markdown
from monai_chunked import ChunkedSlidingWindowInferer, Observer

LAYERS, ROI, STEP, CLASSES = 8, 64, 48, 5
SIZE = (ROI + (LAYERS - 1) * STEP, ROI + 2 * STEP, ROI + 2 * STEP)
SLEEP = 0.25
"""Seconds for a window."""

WORKERS = {"UNet": (1, 2), "sleeps": (1, 2, 4)}
TO_REACH = {("sleeps", 2): 0.92, ("sleeps", 4): 0.88, ("UNet", 2): 0.85}


class Sleeping(torch.nn.Module):
    """Says something cheap, after a while."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        time.sleep(SLEEP * len(windows))
        return torch.cat([windows.roll(k, 2) for k in range(CLASSES)], 1)


def network_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return (Sleeping() if name == "sleeps" else unet(CLASSES)).eval()


def volume() -> torch.Tensor:
    return torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))


def inferer_of(**more: Any) -> ChunkedSlidingWindowInferer:
    return ChunkedSlidingWindowInferer(ROI, overlap=0.25, mode="gaussian", postprocessing="argmax", **more)


def two_classes() -> torch.nn.Module:
    """The least network that ends in labels."""
    return torch.nn.Conv3d(1, 2, 1).requires_grad_(False)


class Noting(Observer):
    """Keeps who knows what was sent and kept."""

    def window(self, window: Any, predicted: bool, stitcher: Any) -> None:
        self.handing_on = stitcher.handing_on


# ---------------------------------------------------------------- in the processes that are measured


def one_rank(name: str) -> None:
    """Run as one of the processes of torchrun, or as the only one; the first one prints what was measured."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    network, image, workers = network_of(name), volume(), int(os.environ.get("WORLD_SIZE", "1"))
    more: dict[str, Any] = {}
    if workers > 1:
        dist.init_process_group("gloo")
        more["process_group"] = "world"
    noting = Noting()
    with torch.no_grad():
        inferer_of(**more)(image[..., :ROI, :ROI, :].repeat(1, 1, 2, 1, 1), two_classes())  # start all there is
        start = time.perf_counter()
        labels = inferer_of(progress=noting, **more)(image, network)
        seconds = time.perf_counter() - start
    moved = [getattr(noting.handing_on, kind, 0) for kind in ("sent_bytes", "kept_bytes")]
    if workers > 1:
        total = torch.tensor(moved)
        dist.all_reduce(total)
        moved = total.tolist()
        dist.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"seconds": seconds, "sent": moved[0], "kept": moved[1], "sum": int(labels.sum())}))


def dask(name: str, workers: int) -> dict[str, Any]:
    """Run by a cluster of so many processes of one thread."""
    from dask import config
    from distributed import Client, LocalCluster

    from monai_chunked.dask import infer

    torch.set_num_threads(1)
    image, noting = volume(), _Counting()
    environment = config.get("distributed.nanny.pre-spawn-environ")
    environment.pop("MALLOC_TRIM_THRESHOLD_", None)  # else what is freed is not used again, which costs a network much
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        infer(inferer_of(), image[..., :ROI, :ROI, :], two_classes, client)
        client.run(network_of, name)  # imports what it needs
        start = time.perf_counter()
        labels = infer(inferer_of(progress=noting), image, functools.partial(network_of, name), client)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "sent": 0, "kept": 0, "sum": int(labels.sum())}


class _Counting(Observer):
    """Watches as a bar would."""


def rank_processes(name: str, workers: int) -> dict[str, Any]:
    """Run by torchrun, or by one process without it."""
    how = ["-m", "benchmarks.workers", "--rank", name]
    if workers > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        nodes = ["--nproc_per_node", str(workers), "--master_addr", "localhost", "--master_port", port]
        how = ["-m", "torch.distributed.run", *nodes, *how]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


ENGINES: dict[str, Callable[[str, int], dict[str, Any]]] = {"torchrun": rank_processes, "Dask": dask}


# ---------------------------------------------------------------- the table


def planned(workers: int) -> tuple[int, int]:
    """Bytes that are sent and kept where chunks are handed on."""
    parts = inferer_of().plan((1, 1, *SIZE), CLASSES, workers=workers).parts
    assert parts is not None
    sent, kept = (sum(getattr(part, name) for part in parts.handing_on) for name in ("sent_bytes", "kept_bytes"))
    return sent, kept


def measured(rounds: int) -> list[dict[str, Any]]:
    """A row for each network, engine and number of workers."""
    rows: list[dict[str, Any]] = []
    for name, numbers in WORKERS.items():
        for engine, run in ENGINES.items():
            for workers in numbers:
                if engine == "Dask" and workers == 1:
                    continue  # nobody would
                runs = [run(name, workers) for _ in range(rounds)]
                seconds = statistics.median(each["seconds"] for each in runs)
                rows.append({"network": name, "engine": engine, "workers": workers, **runs[0], "seconds": seconds})
                one = next(row for row in rows if (row["network"], row["workers"]) == (name, 1))
                rows[-1]["efficiency"] = one["seconds"] / (workers * seconds)
                rows[-1]["same"] = rows[-1]["sum"] == one["sum"]
                rows[-1]["planned_sent"], rows[-1]["planned_kept"] = planned(workers)
                print(f"- {name}, {engine}, {workers}: {seconds:.1f} s, efficiency {rows[-1]['efficiency']:.2f}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    header = ["", "workers", "wall s", "efficiency", "sent MiB", "planned", "kept MiB", "planned", "result"]

    def mib(row: dict[str, Any], key: str) -> str:
        # tasks of Dask are more than its workers, and what they send depends on where they run
        return "" if row["engine"] == "Dask" else f"{row[key] / 2**20:.1f}"

    body = [
        [
            f"{row['network']}, {'one process' if row['workers'] == 1 else row['engine']}",
            str(row["workers"]),
            f"{row['seconds']:.2f}",
            f"{row['efficiency']:.2f}",
            *(mib(row, key) for key in ("sent", "planned_sent", "kept", "planned_kept")),
            "same" if row["same"] else "another",
        ]
        for row in rows
    ]
    return markdown(header, body)


def checks(rows: list[dict[str, Any]]) -> list[Check]:
    """Numbers to reach: times as parts of what they may be, and bytes as they were planned."""
    found = []
    for row in rows:
        name = f"{row['network']}, {row['engine']}, {row['workers']} workers"
        least = TO_REACH.get((row["network"], row["workers"]))
        if least is not None:
            found.append(Check(f"{name}: {least:.2f} over the efficiency", least / row["efficiency"], 1))
        if row["engine"] == "torchrun" and row["workers"] > 1:
            for kind in ("sent", "kept"):
                differs = abs(row[kind] - row[f"planned_{kind}"])
                found.append(Check(f"{name}: bytes {kind} beside the plan's", float(differs), 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="medians of so many rounds (default: 1)")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        one_rank(arguments.rank)
        return
    start = time.perf_counter()
    rows = measured(arguments.rounds)
    seconds = time.perf_counter() - start
    known, size = machine(), " x ".join(map(str, SIZE))
    text = (
        f"## One volume, several workers\n\n{size} voxels, windows of {ROI}³ at overlap 0.25 in {LAYERS} layers of "
        f"nine, {CLASSES} classes, labels in memory. Each worker has one thread; there are {known['cores']} cores. "
        f"The sleeping network takes {SLEEP} s for a window.\n\n{table(rows)}\n\n{checks_table(checks(rows))}\n\n"
        f"{', '.join(f'{name} {value}' for name, value in known.items())}.\n"
        f"`python -m benchmarks.workers --rounds {arguments.rounds}`: {seconds / 60:.1f} minutes.\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "workers.md").write_text(text)
    data = {"seconds": seconds, "machine": known, "rows": rows}
    (RESULTS / "workers.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
