"""What the result of a run depends on, in a form that can be kept and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from monai_chunked.inference.fingerprint.arrays import DIGEST_BYTES
from monai_chunked.inference.fingerprint.description import Describer, Undescribable, sorted_metadata

__all__ = ["differences", "fingerprint_of"]


LONGEST = 4 * DIGEST_BYTES
"""Characters of what is kept as it is; anything longer becomes a digest."""


def fingerprint_of(
    inputs: Any,
    metadata: Sequence[Mapping[str, Any]],
    network: Any,
    network_id: str | None,
    run_id: str | None,
    settings: Mapping[str, Any],
) -> tuple[dict[str, str], list[str]]:
    """Of one call.

    Args:
        inputs: ``(B, C, *spatial)``.
        metadata: of each image.
        network: what is called with windows.
        network_id: by which the user vouches for all of the network but its weights.
        run_id: by which the user vouches for all that cannot be described.
        settings: all else that the result depends on.

    Returns:
        A text for each part, and what of them cannot be described.
    """
    describer = Describer(vouched=run_id is not None)
    unknown: list[str] = []
    texts: dict[str, str] = {}

    def add(name: str, text: Callable[[], str]) -> None:
        try:
            texts[name] = _short(text())
        except Undescribable as error:
            unknown.append(str(error))

    state = getattr(network, "state_dict", None)
    if callable(state):
        add("network weights", lambda: describer.weights_text(state()))
    if network_id is None:
        add("network", lambda: describer.text(network, "network"))
        if not callable(state) and run_id is None and not unknown:
            unknown.append(f"network: {type(network)} without state_dict()")
    else:
        texts["network_id"] = repr(network_id)
    if run_id is not None:
        texts["run_id"] = repr(run_id)
    add("input", lambda: _image_text(describer, inputs, "input"))
    # what the image is called says where the result goes, not what it is
    add("metadata", lambda: describer.text([_without_name(each) for each in metadata], "metadata"))
    condition = settings.get("condition")
    if condition is not None:
        add("condition", lambda: _image_text(describer, condition, "condition"))
    for name, value in settings.items():
        if name != "condition":
            add(name, lambda name=name, value=value: describer.text(value, name))  # type: ignore[misc]
    return texts, unknown


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What two fingerprints differ in: short values as they were and are, long ones by name.

    >>> differences({"overlap": "0.25", "input": "8f" * 16}, {"overlap": "0.5", "input": "9c" * 16})
    ['input', 'overlap (0.25 before, 0.5 now)']
    """
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            short = max(len(old), len(new)) < 2 * DIGEST_BYTES
            found.append(f"{name} ({old} before, {new} now)" if short else name)
    return found


def _image_text(describer: Describer, images: Any, name: str) -> str:
    if isinstance(images, torch.Tensor):
        return describer.text(images.detach().as_subclass(torch.Tensor), name)
    return describer.array(images, name)


def _without_name(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return sorted_metadata({key: value for key, value in metadata.items() if key != "filename_or_obj"})


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).hexdigest()
