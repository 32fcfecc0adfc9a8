"""The class for 2D networks over the slices of a volume."""

from __future__ import annotations

import inspect
from typing import Any

import monai
import torch
from monai.inferers import SliceInferer
from monai.utils import ensure_tuple

from monai_chunked.api.inferer import ChunkedSlidingWindowInferer, Network
from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.inputs.source import check_inputs

__all__ = ["ChunkedSliceInferer"]


class ChunkedSliceInferer(SliceInferer, ChunkedSlidingWindowInferer):
    """
    MONAI's ``SliceInferer``, a 2D network over the slices of a volume, that never holds the scores of the whole volume.

    Unlike MONAI's it hands further arguments to the network.

    Args:
        spatial_dim: the dimension over which slices are taken: 0, 1 or 2.
        args, kwargs: of :py:class:`ChunkedSlidingWindowInferer`, with a 2D ``roi_size``.

    Example::

        inferer = ChunkedSliceInferer(spatial_dim=2, roi_size=(256, 256), postprocessing="argmax")
        labels = inferer(volume, network_2d)
    """

    def __call__(self, inputs: Array, network: Network, *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: ``(B, C, H, W, D)``.
            network: called with slices ``(windows, C, *roi_size)``.
            args, kwargs: as in :py:class:`ChunkedSlidingWindowInferer`.

        Raises:
            ValueError: when ``spatial_dim``, ``roi_size`` and ``inputs`` do not match, or ``condition`` is given, which
                the ``SliceInferer`` of early versions of MONAI does not take.
        """
        check_inputs(inputs)
        roi_size = list(ensure_tuple(self.orig_roi_size))
        if self.spatial_dim not in (0, 1, 2) or len(roi_size) != 2 or len(inputs.shape) != 5:
            raise ValueError(
                f"spatial_dim={self.spatial_dim} must be 0, 1 or 2, roi_size={tuple(roi_size)} must have 2 dimensions, "
                f"and inputs must have shape (B, C, H, W, D), got {tuple(inputs.shape)}"
            )
        roi_size.insert(self.spatial_dim, 1)
        weights = self.roi_weight_map
        if weights is not None and weights.dim() == 2:
            weights = weights.unsqueeze(self.spatial_dim)

        takes_condition = "condition" in inspect.signature(self.network_wrapper).parameters
        if kwargs.get("condition") is not None and not takes_condition:
            raise ValueError(f"condition: SliceInferer of MONAI {monai.__version__} has none; leave it out")

        def slices(windows: torch.Tensor, *args: Any, condition: torch.Tensor | None = None, **kwargs: Any) -> Any:
            positional: Any = (condition, *args) if takes_condition else args
            return self.network_wrapper(network, windows, *positional, **kwargs)

        return self._infer(inputs, network, args, kwargs, call=slices, roi_size=roi_size, roi_weight_map=weights)

    def _wrapper(self) -> object:
        return type(self).network_wrapper, self.spatial_dim
