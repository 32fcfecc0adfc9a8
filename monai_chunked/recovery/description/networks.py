"""Networks as a text that can be kept and compared: what they compute, and no traces of how they were made."""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from monai_chunked.recovery.description.arrays import DIGEST_BYTES
from monai_chunked.recovery.description.installed import full_name
from monai_chunked.recovery.description.protocol import Describes

__all__ = ["network_text"]


NO_STATE = {"dynunet.DynUNet": {"heads"}, "dynunet.DynUNetSkipLayer": {"heads"}}
"""Attributes of MONAI's networks that hold random numbers until the first window, and are never read before."""


def network_text(module: torch.nn.Module, describer: Describes) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return _scripted(module)
    if isinstance(module, torch._dynamo.OptimizedModule):
        options = getattr(module.dynamo_ctx, "compiler_config", None) or {}
        numbers = {key: held for key, held in options.items() if type(held) in (bool, int, float)}  # others are paths
        return f"compiled({describer.describe(module._orig_mod, '._orig_mod')}, {describer.describe(numbers)})"
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):  # it differs only in how gradients are gathered
        return f"distributed({describer.describe(module.module, '.module')})"
    state: Any = module.__getstate__()
    if isinstance(state, dict):
        ignored = {name for cls, names in NO_STATE.items() if full_name(type(module)).endswith(cls) for name in names}
        state = {name: held for name, held in state.items() if name not in ignored and not _of_state_dict(name)}
        state = _without_ids_of_hooks(state)
    compiled = "compiled " if getattr(module, "_compiled_call_impl", None) else ""
    kind, forward = type(module), type(module).forward
    return f"{compiled}{describer.kind(kind)}.{describer.describe(forward, '.forward')}{describer.state(state)}"


def _of_state_dict(name: str) -> bool:
    """Whether it is a hook that predictions do not depend on."""
    return name.startswith(("_state_dict_", "_load_state_dict_"))


def _without_ids_of_hooks(state: Mapping[str, Any]) -> dict[str, Any]:
    """Hooks are numbered throughout the process; what counts is their order."""
    hooks = {name for name in state if "_hooks" in name and isinstance(state[name], dict)}
    ids = sorted({number for name in hooks for number in state[name]})
    at = {number: position for position, number in enumerate(ids)}
    return {name: {at[n]: hook for n, hook in held.items()} if name in hooks else held for name, held in state.items()}


def _scripted(module: torch.jit.ScriptModule) -> str:
    """The text of what would be saved, without the parts of names that count the modules of the process."""

    def plain(text: str) -> str:
        return re.sub(r"[./]?___torch_mangle_\d+", "", text)

    def place(name: str) -> tuple[str, list[int]]:
        return plain(name), [int(number) for number in re.findall(r"mangle_(\d+)", name)]

    memory, digest = io.BytesIO(), hashlib.blake2b(digest_size=DIGEST_BYTES)
    torch.jit.save(module, memory)
    with zipfile.ZipFile(memory) as archive:
        for name in sorted(archive.namelist(), key=place):
            data, inside = archive.read(name), plain(name.partition("/")[2])
            if inside.endswith(".py"):
                data = plain(data.decode()).encode()
            elif inside.endswith(".pkl"):
                steps = (f"{step.name} {plain(str(argument))}" for step, argument, _ in pickletools.genops(data))
                data = "\n".join(steps).encode()
            if not inside.endswith((".debug_pkl", "serialization_id")):
                digest.update(f"{inside} {len(data)}".encode() + data)
    return f"scripted {digest.hexdigest()}"
