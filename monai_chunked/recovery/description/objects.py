"""Objects as a text that can be kept and compared, followed as pickle follows them to all that they hold."""

from __future__ import annotations

import copyreg
from typing import Any

from monai.transforms import Compose, Randomizable

from monai_chunked.recovery.description.installed import full_name, installed_version
from monai_chunked.recovery.description.protocol import Describes

__all__ = ["object_text"]


def object_text(value: Any, describer: Describes) -> str:
    kind = type(value)
    try:
        reduced: Any = copyreg.dispatch_table.get(kind, lambda value: value.__reduce_ex__(4))(value)
    except Exception:  # any type may raise anything here
        return describer.cannot(value)
    if isinstance(reduced, str):
        version = installed_version(getattr(value, "__module__", None) or kind.__module__)
        return describer.cannot(value) if version is None else f"{full_name(value)}{reduced} {version}"
    function, arguments, *rest = reduced
    state, in_list, in_dict = (*rest, None, None, None)[:3]
    if kind is Compose:  # it draws no numbers itself, and is seeded by chance
        state = {key: held for key, held in state.items() if key != "R"}
    # the object exists, so that how objects of its class are made does not count
    made_by = "itself" if function is kind else describer.describe(function)
    parts = [describer.kind(kind), made_by, describer.each(part for part in arguments if part is not kind)]
    parts.append(describer.state(state))
    if in_list is not None:
        parts.append(f"[{describer.each(in_list)}]")
    if in_dict is not None:
        parts.append("{" + describer.items(in_dict) + "}")
    if isinstance(value, Randomizable) and kind is not Compose:
        parts.append(describer.describe(value.R, ".R"))
    return f"object({', '.join(parts)})"
