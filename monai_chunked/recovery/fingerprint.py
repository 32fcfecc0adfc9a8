"""What the result of a run depends on, in a form that can be kept and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from monai_chunked.recovery.description.arrays import DIGEST_BYTES
from monai_chunked.recovery.description.describer import Describer, Undescribable, sorted_metadata
from monai_chunked.recovery.differences import DETAILS, Details, packed

__all__ = ["fingerprint_of"]


LONGEST = 4 * DIGEST_BYTES
"""Characters of what is kept as it is; anything longer becomes a digest."""


class Voxels(Protocol):
    """A batch of images: the tensor or array that voxels come from, and the metadata of each image."""

    metadata: tuple[Mapping[str, Any], ...]

    @property
    def origin(self) -> Any: ...


def fingerprint_of(
    source: Voxels,
    condition: Voxels | None,
    network: Any,
    settings: Mapping[str, Any],
    *,
    network_id: str | None,
    run_id: str | None,
) -> tuple[dict[str, str], list[str]]:
    """The fingerprint of one call.

    Args:
        source: where windows are read from.
        condition: where windows of the condition are read from; ``None``: there is none.
        network: what is called with windows.
        settings: all else that the result depends on.
        network_id: by which the user vouches for all of the network but its weights.
        run_id: by which the user vouches for all that cannot be described.

    Returns:
        A text for each part, their details to tell differences by, and what of them cannot be described.
    """
    describer = Describer(vouched=run_id is not None)
    unknown: list[str] = []
    texts: dict[str, str] = {}
    details: Details = {}

    def add(name: str, text: Callable[[], str]) -> None:
        try:
            texts[name] = _short(text())
            if describer.details:
                details[name] = describer.details
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
    add("input", lambda: describer.voxels(source.origin, "input"))
    # the name of an image says where its result goes, not what the result is
    add("metadata", lambda: describer.text([_without_name(image) for image in source.metadata], "metadata"))
    if condition is not None:
        add("condition", lambda: describer.voxels(condition.origin, "condition"))
    for name, value in settings.items():
        add(name, lambda name=name, value=value: describer.text(value, name))  # type: ignore[misc]  # bound in the loop
    return {**texts, DETAILS: packed(details)}, unknown


def _without_name(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return sorted_metadata({key: value for key, value in metadata.items() if key != "filename_or_obj"})


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).hexdigest()
