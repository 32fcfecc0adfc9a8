"""One volume on many workers, by Dask: :py:func:`infer`. Needs the package ``distributed`` when it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from monai_chunked.api.inferer import ChunkedSlidingWindowInferer
from monai_chunked.api.slice_inferer import ChunkedSliceInferer
from monai_chunked.call.call import Call
from monai_chunked.call.settings import Settings
from monai_chunked.inputs.source import check_inputs, source_of
from monai_chunked.outputs.base import Output
from monai_chunked.plan.sizes import check_positive
from monai_chunked.run import run
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.dask.cluster import Cluster
from monai_chunked.workers.dask.elsewhere import Elsewhere
from monai_chunked.workers.worker import Worker

__all__ = ["infer"]


def infer(
    inferer: ChunkedSlidingWindowInferer,
    source: Any,
    network_factory: Callable[[], Any],
    client: Any,
    output: Output | str | None = None,
    *,
    parts: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> Any:
    """The result of ``inferer(source, network_factory())``, made by the workers of a Dask cluster.

    The bits are those of one process. What a part has added to a chunk that a later one finishes is handed on to it.
    With an ``inverse``, a ``skip`` or a memory limit parts are independent, and windows that touch the chunks of two
    parts are predicted for both. ``inferer.plan(source, classes, workers=parts)`` says both beforehand. The network is
    built once in each worker, and runs without gradients and outside of any ``torch.autocast`` of the caller.

    Args:
        inferer: says what is to be done; its memory limits, ``sw_device`` and ``scratch_dir`` are those of each worker.
        source: the input, ``(B, C, *spatial)``. What is in memory is sent to the workers; a file is opened by each of
            them again, by the same path, and read as far as it is needed. Or a function without arguments that opens
            it, called here and in each worker: ``partial(open_image, "ct.nii.gz")``.
        network_factory: a function without arguments that builds the network, with its weights and on its device. It
            goes to the workers by pickle.
        client: a ``distributed.Client``.
        output: where the result goes, which this process writes; by default that of the inferer.
        parts: how many; by default up to four for each thread of the workers, as many as are worth while. The
            finished chunks of four parts for each thread may be in memory at a time.
        resources: of Dask, that a part needs: ``{"GPU": 1}`` has one part at a time on each GPU of a worker that was
            started with ``--resources "GPU=1"``.

    Raises:
        ImportError: when ``distributed`` is missing.
        TypeError: when the inferer is another one.
        ValueError: when a parameter does not fit; when the inverse cannot be done a chunk at a time.
        RuntimeError: when the worker of a part was lost too often; and whatever the network raises, when a part has
            failed and was tried twice again. The message names the part.
        OSError: when the result cannot be written.

    Returns:
        what the inferer returns.

    Example::

        client = Client(LocalCluster(n_workers=4, threads_per_worker=1))
        volume = partial(open_image, "embryo.ome.zarr")
        labels = infer(inferer, volume, load_network, client, ZarrOutput("results"))
    """
    if isinstance(inferer, ChunkedSliceInferer) or not isinstance(inferer, ChunkedSlidingWindowInferer):
        raise TypeError(f"inferer must be a ChunkedSlidingWindowInferer, got {type(inferer).__name__}")
    parts = None if parts is None else check_positive("parts", parts)
    inputs = source() if callable(source) else source
    check_inputs(inputs)
    given = Settings.given(inferer) | ({} if output is None else {"output": output, "output_dir": None})
    settings = Settings.check(inputs.shape, **given)
    if settings.process_group is not None:
        raise ValueError("process_group is for torchrun, not for workers of Dask; leave it out")
    of_workers = replace(settings, output="cpu", output_dir=None, overwrite=False, mask=None, progress=False)
    call = Call.of(source_of(inputs), BoundNetwork(network_factory, (), {}), replace(settings, sw_device=None))
    executor = Elsewhere(Cluster(client, Worker(of_workers, source, network_factory), resources), parts)
    if reason := call.why_whole():
        return executor.whole(call, reason)  # before anything is sent
    with executor.cluster:
        return run.infer(call, executor)
