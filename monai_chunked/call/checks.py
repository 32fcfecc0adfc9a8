"""What can be known to be wrong before the network runs. Every message names the parameter, its value and what fits."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch.distributed as dist
from monai.transforms import Invertd
from monai.utils import BlendMode, PytorchPadMode, ensure_tuple, fall_back_tuple

from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.inputs.source import check_inputs
from monai_chunked.outputs.base import Output
from monai_chunked.plan.sizes import check_positive, per_dimension
from monai_chunked.transforms.chain import Chains, all_of, chains_of, of_each
from monai_chunked.transforms.dictionary import check_invert
from monai_chunked.transforms.inversion import ImageInverse
from monai_chunked.transforms.voxelwise import check_voxelwise
from monai_chunked.windows.importance import MODES

__all__ = [
    "check_buffer",
    "check_choice",
    "check_condition",
    "check_inverse",
    "check_mode",
    "check_output",
    "check_output_dir",
    "check_overlap",
    "check_overwrite",
    "check_padding_mode",
    "check_postprocessing",
    "check_preprocessing",
    "check_process_group",
    "check_roi_size",
    "check_same_shape",
    "check_sigma_scale",
    "check_sw_batch_size",
]


OUTPUTS = ("auto", "device", "cpu", "disk")


FILE_OUTPUTS = {".nii.gz": "NiftiOutput", ".nii": "NiftiOutput", ".zarr": "ZarrOutput", ".npy": "NumpyOutput"}
"""What writes files with these endings."""


def check_roi_size(roi_size: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Spatial size of a window, with the size of the input where ``roi_size`` gives none."""
    dims, given = len(shape) - 2, ensure_tuple(roi_size)
    if len(given) != dims and np.ndim(roi_size) > 0:
        missing = {
            1: "If the batch dimension is missing, pass inputs[None]. ",
            2: "If the dimensions of batch and channel are missing, pass inputs[None, None]. ",
        }
        raise ValueError(
            f"roi_size={roi_size} has {len(given)} dimension(s) but inputs of shape {tuple(shape)} have {dims} "
            f"spatial dimension(s) behind batch and channel. {missing.get(len(given) - dims, '')}Data with the channel "
            f"last must be brought to (B, C, *spatial) first, with monai.transforms.EnsureChannelFirst or "
            f"EnsureChannelFirstd."
        )
    try:
        return tuple(operator.index(r) for r in fall_back_tuple(roi_size, shape[2:]))
    except TypeError:
        raise TypeError(f"roi_size={roi_size} must be an int, or ints (or None) for each spatial dimension") from None


def check_sw_batch_size(sw_batch_size: object) -> int:
    return check_positive("sw_batch_size", sw_batch_size)


def check_overlap(overlap: object, dims: int) -> tuple[float, ...]:
    values = _numbers("overlap", overlap, dims)
    if not all(0 <= o < 1 for o in values):
        raise ValueError(f"overlap={overlap} must be at least 0 and less than 1 in every dimension")
    return values


def check_sigma_scale(sigma_scale: Any, dims: int, mode: str) -> Any:
    """Only the gaussian importance maps use it."""
    is_used = mode in (BlendMode.GAUSSIAN.value, "nnunet")
    if is_used and not all(s > 0 for s in _numbers("sigma_scale", sigma_scale, dims)):
        raise ValueError(f"sigma_scale={sigma_scale} must be more than 0 in every dimension")
    return sigma_scale


def check_mode(mode: object) -> str:
    return check_choice("mode", mode, list(MODES))


def check_padding_mode(padding_mode: object) -> str:
    return check_choice("padding_mode", padding_mode, [m.value for m in PytorchPadMode])


def check_output(output: object) -> str | Output:
    """An output, or the name of one. For anything else the error says what was meant, if that can be guessed."""
    if isinstance(output, Output):
        return output
    if isinstance(output, type):
        folder = '"folder"' if output.__name__ in FILE_OUTPUTS.values() else "..."
        raise TypeError(f"output={output.__name__} is a class; give an object, {output.__name__}({folder})")
    ending = next((ending for ending in FILE_OUTPUTS if str(output).rstrip("/").endswith(ending)), None)
    if ending is not None:
        options = f', output_ext="{ending}"' if ending.startswith(".nii") else ""
        raise ValueError(
            f"output={output!r} is the name of a file, but files are named after their image, in a folder that you "
            f'name: output={FILE_OUTPUTS[ending]}("folder"{options})'
        )
    return check_choice("output", output, OUTPUTS, ', or an output object, such as NiftiOutput("folder")')


def check_output_dir(output_dir: Any, output: str | Output) -> Any:
    """Refused where no file would be written to it."""
    if output_dir is not None and output not in ("auto", "disk"):
        named = isinstance(output, str)
        own = f"{output!r} writes no file" if named else f"{type(output).__name__}(...) has its own folder"
        raise ValueError(
            f"output_dir={str(output_dir)!r} is the folder of output='disk' and output='auto', but output={own}; "
            f"change output, or remove output_dir"
        )
    return output_dir


def check_overwrite(overwrite: Any) -> Any:
    if not (isinstance(overwrite, bool) or overwrite == "changed"):
        raise ValueError(f"overwrite={overwrite!r} must be True, False or 'changed'")
    return overwrite


def check_buffer(buffer_steps: int | None, buffer_dim: int, dims: int) -> int | None:
    if buffer_steps is not None and buffer_steps > 0 and not -dims <= buffer_dim < dims:
        raise ValueError(f"buffer_dim={buffer_dim} must be at least {-dims} and less than {dims}")
    return buffer_steps


def check_condition(condition: Array | None, inputs: Array) -> None:
    """Its windows are those of the input; the number of channels may be another."""
    if condition is None:
        return
    check_inputs(condition, "condition")
    shape, of_inputs = tuple(condition.shape), tuple(inputs.shape)
    if shape[:1] + shape[2:] != of_inputs[:1] + of_inputs[2:]:
        raise ValueError(
            f"condition of shape {shape} does not match inputs of shape {of_inputs}; "
            f"batch and spatial dimensions must be the same"
        )


def check_same_shape(condition: Array, inputs: Array) -> None:
    """MONAI's inferer wants the same number of channels, too."""
    check_inputs(condition, "condition")
    if tuple(condition.shape) != tuple(inputs.shape):
        raise ValueError(
            f"condition of shape {tuple(condition.shape)} must have the shape of inputs, {tuple(inputs.shape)}"
        )


def check_preprocessing(preprocessing: Any) -> Any:
    if not (preprocessing is None or callable(preprocessing)):
        raise TypeError(
            f"preprocessing={preprocessing!r} must be a callable that maps (C, *window) to (C', *window), or None"
        )
    check_voxelwise("preprocessing", preprocessing)
    return preprocessing


def check_postprocessing(postprocessing: object, inverse: object) -> Chains:
    """What is done to scores. An ``Invertd`` in it is refused beside an ``inverse``, which is checked already."""
    chains = chains_of(postprocessing)
    if inverse is not None and any(chain.invert for chain in all_of(chains)):
        raise ValueError(
            "inverse= and Invertd in postprocessing= both bring the prediction to the patient's grid; choose one"
        )
    if inverse is None:
        return chains
    # all of a postprocessing comes behind an inverse= that is given beside it
    return of_each(lambda chain: replace(chain, before=(), after=chain.functions), chains)


def check_inverse(inverse: object) -> ImageInverse | Invertd | None:
    """``None``, ``"image"``, an :py:class:`ImageInverse` or an ``Invertd``."""
    if inverse is None:
        return None
    if inverse == "image":
        inverse = ImageInverse()
    if isinstance(inverse, type) or not isinstance(inverse, (ImageInverse, Invertd)):
        raise TypeError(
            f"inverse={inverse!r} must be 'image' (undo what was done to the input), ImageInverse(...), or an object "
            f"of MONAI's Invertd"
        )
    if isinstance(inverse, Invertd):
        check_invert("inverse", inverse)
    return inverse


def check_process_group(process_group: Any) -> Any:
    """``None``, ``"world"``, or a ``ProcessGroup``.

    Raises:
        ValueError, RuntimeError: when it is something else, or there is none.
    """
    if process_group is None:
        return None
    named = isinstance(process_group, str)
    if named and process_group != "world":
        raise ValueError(
            f"process_group={process_group!r} must be 'world', a ProcessGroup of torch.distributed, or None"
        )
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"process_group={process_group!r} needs processes that know of each other: start the program with "
            f"torchrun --nproc_per_node=N, and call torch.distributed.init_process_group('gloo') in it, or 'nccl' on "
            f"GPUs, before the inferer"
        )
    if isinstance(process_group, int) and process_group == dist.GroupMember.NON_GROUP_MEMBER:  # of new_group
        raise ValueError("process_group: this process is no member of it; only its members call the inferer with it")
    if not named and not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group={process_group!r} must be 'world', a ProcessGroup of torch.distributed that this process "
            f"belongs to, or None"
        )
    return process_group


def check_choice(name: str, value: object, accepted: Sequence[str], more: str = "") -> str:
    text = str(getattr(value, "value", value))
    if text not in accepted:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, accepted))}{more}")
    return text


def _numbers(name: str, value: object, dims: int) -> tuple[float, ...]:
    values = per_dimension(name, value, dims)
    if not all(isinstance(v, numbers.Real) for v in values):
        raise TypeError(f"{name}={value!r} must be made of numbers")
    return values
