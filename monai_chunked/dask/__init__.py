"""One volume on many workers, by Dask: :py:func:`infer`. Needs the package ``distributed`` when it is called."""

from monai_chunked.dask.inferring import infer

__all__ = ["infer"]
