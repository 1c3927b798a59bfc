"""What was measured, as a table and as a drawing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastllm.errors import OptionError, import_error

_COLUMNS = ("dtype", "threads", "batch", "prefill", "of int8", "decode", "GB/s", "of reading", "first token", "memory")
_UNITS = ("", "", "", "tokens/s", "", "tokens/s", "weights", "", "s", "MB")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of bench as an aligned table."""
    cells = [_COLUMNS, _UNITS]
    cells += [
        (
            row["dtype"],
            str(row["threads"]),
            str(row["batch"]),
            f"{row['prefill_tps']:,.{1 if row['prefill_tps'] < 100 else 0}f}",
            f"{row['int8_share']:.0%}",
            f"{row['decode_tps']:,.{1 if row['decode_tps'] < 100 else 0}f}",
            f"{row['weight_gbps']:.1f}",
            f"{row['read_share']:.0%}",
            f"{row['first_token_s']:.3g}",
            f"{row['rss_mb']:,.0f}" if row["rss_mb"] else "",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    first = rows[0]
    lines.append(
        f"prompt {first['prompt']:,}, then {first['gen']:,} tokens; {first['isa']}{', precise' * first['precise']}; "
        f"medians of "
        f"{min(row['samples'] for row in rows)} or more"
    )
    lines += [
        f"{threads} thread{'s' if threads != 1 else ''}: reading alone {row['read_gbps']:.1f} GB/s, "
        f"int8 alone {row['int8_gops']:,.0f} G multiply-adds/s"
        for threads, row in {row["threads"]: row for row in rows}.items()
    ]
    return "\n".join(lines)


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raises OptionError where `plot` could not write the file. Call it before measuring, which takes long."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except (ImportError, OSError) as error:
        missing = OptionError("--plot needs matplotlib: pip install 'fastllm[plot]'")
        raise import_error(error, "matplotlib", missing) from None
    path = Path(path)
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise OptionError(f"--plot {path}: the name must end in one of {', '.join('.' + name for name in known)}")
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise OptionError(f"--plot {path} cannot be written: no such folder, or no right to")


def plot(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str], *, title: str) -> None:
    """Draws the rows of bench: bars of tokens/s in front of what the machine's limits would allow."""
    from matplotlib.figure import Figure

    names = [f"{row['dtype']}, threads {row['threads']}, batch {row['batch']}" for row in rows]
    figure = Figure(figsize=(12, 1.8 + 0.35 * len(rows)), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("decode", "prefill"), strict=True):
        limits = axes.barh(names, [row[f"{kind}_limit_tps"] for row in rows], color="mistyrose", edgecolor="tab:red")
        bars = axes.barh(names, [row[f"{kind}_tps"] for row in rows], height=0.5, color="tab:blue")
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        what = "int8 multiply-adds, or reading the weights, alone" if kind == "decode" else "int8 multiply-adds alone"
        axes.legend([limits], [what], loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        axes.set_xlabel(f"{kind}, tokens/s")
        axes.margins(x=0.15)
    axes.invert_yaxis()
    figure.suptitle(f"{title}: prompt {rows[0]['prompt']}, then {rows[0]['gen']} tokens")
    figure.savefig(path, dpi=120)
