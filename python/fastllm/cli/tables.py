"""Tables that commands print."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime


def show(names: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> None:
    """Prints rows below the names of their columns, which are as wide as they need to be. right: of numbers."""
    table = [names, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(names))]
    for row in table:
        cells = [f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)]
        print("  ".join(cells).rstrip().replace("\n", "\\n"))


def moment(seconds: float) -> datetime:
    """A time, in seconds since 1970, as this place has it."""
    return datetime.fromtimestamp(int(seconds)).astimezone()
