"""Numbers of bytes as people write and read them: 512M, 2G, 1.5 GB."""

from __future__ import annotations

import argparse
import re

_UNITS = "KMGT"


def size(text: str) -> int:
    """The bytes that an option such as 512M, 2G, 1.5GiB or 1048576 means; K, M, G and T are powers of 1024.

    Raises argparse.ArgumentTypeError.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(?:([kmgt])(?:i?b)?|b)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, such as 512M or 2G, not {text!r}")
    scale = 1024 ** (_UNITS.index(found[2].upper()) + 1) if found[2] else 1
    return int(float(found[1]) * scale)


def human(nbytes: float) -> str:
    """A number of bytes with three digits or so: 1.4 GB, of 1024 MB each."""
    unit = ""
    for larger in _UNITS:
        if nbytes < 1000:
            break
        nbytes, unit = nbytes / 1024, larger
    return f"{nbytes:.0f} {unit}B" if nbytes >= 10 or not unit else f"{nbytes:.1f} {unit}B"
