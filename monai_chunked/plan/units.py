"""Units of length: what OME-Zarr and those who write it call them, and how long they are."""

from __future__ import annotations

import unicodedata

__all__ = ["MILLIMETERS", "length_unit"]


POWERS = {
    **{"yocto": -24, "zepto": -21, "atto": -18, "femto": -15, "pico": -12, "nano": -9, "micro": -6, "milli": -3},
    **{"centi": -2, "deci": -1, "": 0, "hecto": 2, "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "peta": 15},
    **{"exa": 18, "zetta": 21, "yotta": 24},
}


MILLIMETERS = {
    **{f"{prefix}meter": float(f"1e{power + 3}") for prefix, power in POWERS.items()},
    **{"angstrom": 1e-7, "inch": 25.4, "foot": 304.8, "yard": 914.4, "mile": 1609344.0},
    "parsec": 3.0856775814913673e19,
}
"""Length of all units of space in the specification of OME-Zarr; MONAI's affines are in millimeters."""


SHORT = {
    **{"pm": "picometer", "nm": "nanometer", "um": "micrometer", "\N{GREEK SMALL LETTER MU}m": "micrometer"},
    **{"mm": "millimeter", "cm": "centimeter", "dm": "decimeter", "m": "meter", "km": "kilometer"},
    **{"\N{LATIN CAPITAL LETTER A WITH RING ABOVE}": "angstrom", "micron": "micrometer"},
}
"""What the specification does not know, but files have. Capitals matter: Mm is no mm."""


def length_unit(name: object) -> str | None:
    """What the specification of OME-Zarr calls a unit of length; ``None`` if it is none that is known.

    >>> length_unit("angstrom"), length_unit("\N{MICRO SIGN}m"), length_unit("um"), length_unit("Micrometres")
    ('angstrom', 'micrometer', 'micrometer', 'micrometer')
    >>> length_unit("pixel"), length_unit("")
    (None, None)
    """
    text = unicodedata.normalize("NFKC", str(name)).strip()  # there are two characters for the micro sign
    word = text.lower().replace("metre", "meter")
    spellings = (SHORT.get(text, ""), word, word.removesuffix("s"))
    return next((unit for unit in spellings if unit in MILLIMETERS), None)
