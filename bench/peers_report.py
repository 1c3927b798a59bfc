"""What bench/peers.py measured: its JSON, its Markdown tables, its plot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from peers_models import SHAPES

TITLES = {
    "decode": "decode, tokens/s",
    "prefill": "a prompt, tokens/s",
    "batch": "16 texts decoding together, tokens/s of all",
    "long": "decode after 8,000 tokens, keys and values in f16, tokens/s",
    "long-q8": "decode after 8,000 tokens, keys and values in 8 bits, tokens/s",
    "start": "from the start of the process to the first token and its end, seconds",
    "busy": "decode beside one busy process, tokens/s",
}


class Sample(NamedTuple):
    """A figure of one process. value: tokens/s, or seconds for the work "start"."""

    label: str
    shape: str
    work: str
    threads: int
    settings: dict[str, Any]
    token_bytes: float  # bytes of weights that a new token reads
    bits: float  # nominal bits per weight
    value: float
    rss_mb: float
    others: float  # cores that other processes took during the measurement
    share: float | None = None  # of the machine's limit, which was measured in the same run


def limit_key(work: str, threads: int, isa: str = "") -> str:
    """The key of a machine's limit: "read 2" is GB/s with two threads, "int8 2" and "int8 2 avx2" are 1e9 int8
    multiply-adds/s with the best and with one instruction set.
    """
    return f"{work} {threads} {isa}".strip()


class Result:
    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.machine: dict[str, list[float]] = {}  # by limit_key
        self.absent: dict[str, str] = {}  # what is left out -> why

    @classmethod
    def read(cls, path: Path) -> Result:
        data, result = json.loads(path.read_text()), cls()
        result.samples = [Sample(**sample) for sample in data["samples"]]
        result.machine, result.absent = data["machine"], data["absent"]
        return result

    def write(self, path: Path) -> None:
        samples = [sample._asdict() for sample in self.samples]
        text = json.dumps({"machine": self.machine, "absent": self.absent, "samples": samples}, indent=1)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(text)
        os.replace(unfinished, path)

    def add(self, other: Result) -> None:
        """Adds the figures of another run, with shares of the machine's limits in that run."""
        self.samples += [sample._replace(share=_share(other, sample)) for sample in other.samples]
        for key, values in other.machine.items():
            self.machine.setdefault(key, []).extend(values)
        self.absent |= other.absent

    def limit(self, work: str, threads: int, isa: str = "") -> float | None:
        """The median of a limit's measurements."""
        values = self.machine.get(limit_key(work, threads, isa))
        return median(values) if values else None


class Row(NamedTuple):
    """The samples of a peer for one work, shape and number of threads."""

    label: str
    threads: int
    value: float  # the median
    least: float
    most: float
    share: float | None  # median share of the machine's limit
    ratio: float | None  # fastllm's speed divided by this one


def rows(result: Result, shape: str, work: str) -> list[Row]:
    """The rows of a table, in the order in which the peers were first measured."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in result.samples:
        if (sample.shape, sample.work) == (shape, work):
            groups.setdefault((sample.label, sample.threads), []).append(sample)
    found = []
    for (label, threads), samples in groups.items():
        values = [sample.value for sample in samples]
        ours = _ours(groups, samples[0])
        ratio = median(sample.value for sample in ours) / median(values) if ours else None
        if ratio and work == "start":
            ratio = 1 / ratio
        shares = [sample.share for sample in samples if sample.share is not None]
        share = median(shares) if shares else None
        found.append(Row(label, threads, median(values), min(values), max(values), share, ratio))
    return found


def _ours(groups: dict[tuple[str, int], list[Sample]], sample: Sample) -> list[Sample] | None:
    """The samples of fastllm to compare a peer's with.

    Of the same instruction set; of about as few bits per weight if the peer has five or fewer; else of q8.
    """
    isa = isa_of(sample.label)
    for dtype in ("q4", "q8") if sample.bits <= 5 else ("q8",):
        for suffix in (f" ({isa})", "") if isa else ("",):
            if ours := groups.get((f"fastllm {dtype}{suffix}", sample.threads)):
                return ours
    return None


def isa_of(label: str) -> str:
    """The instruction set in a label: "avx2" of "llama.cpp Q8_0 (avx2)"."""
    return label.partition(" (")[2].removesuffix(")")


def _share(result: Result, sample: Sample) -> float | None:
    """The share of the limit: of memory's speed for a token's weights, of int8 multiply-adds for a prompt's layers."""
    if sample.work == "decode" and (read := result.limit("read", sample.threads)):
        return sample.value * sample.token_bytes / 1e9 / read
    if sample.work == "prefill" and (peak := result.limit("int8", sample.threads, isa_of(sample.label))):
        return sample.value * SHAPES[sample.shape].layer_weights / 1e9 / peak
    return None


# ---- Markdown ------------------------------------------------------------------------------------------------------


def tables(result: Result) -> str:
    parts = [_machine_table(result)]
    for work, title in TITLES.items():
        for shape in SHAPES:
            if table := rows(result, shape, work):
                length = f" of {SHAPES[shape].prompt}" if work == "prefill" else ""
                parts.append(f"{shape}, {title.replace('a prompt', f'a prompt{length}')}:\n\n{_table(work, table)}")
    if memory := list(_memory(result)):
        head = ["| | shape | most memory of a process, MB | a token's weights, MB |", "| --- | --- | ---: | ---: |"]
        parts.append("\n".join([*head, *memory]))
    if result.absent:
        parts.append("\n".join(f"- {what}: left out, {why}" for what, why in result.absent.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine_table(result: Result) -> str:
    titles = {"read": "reading memory, GB/s", "int8": "int8 multiply-adds, 1e9/s"}
    keys = [(*key.split(), "")[:3] for key in result.machine]
    counts = sorted({int(threads) for _, threads, _ in keys})
    if not counts:
        return ""
    lines = [_line(["the machine", *(_threads(n) for n in counts)]), _line(["---", *["---:"] * len(counts)])]
    for work, isa in dict.fromkeys((work, isa) for work, _, isa in keys):
        limits = [result.limit(work, n, isa) for n in counts]
        title = titles[work] + (f", {isa}" if isa else "")
        lines.append(_line([title, *(f"{limit:,.1f}" if limit else "" for limit in limits)]))
    return "\n".join(lines)


def _table(work: str, table: Sequence[Row]) -> str:
    counts = sorted({row.threads for row in table})
    labels = list(dict.fromkeys(row.label for row in table))
    limit = {"decode": "of reading", "prefill": "of the peak"}.get(work)
    head = [cell for n in counts for cell in (_threads(n), "least to most", *([limit] if limit else []), "fastllm is")]
    lines = [_line(["", *head]), _line(["---", *["---:"] * len(head)])]
    for label in labels:
        cells = [label]
        for n in counts:
            row = next((row for row in table if (row.label, row.threads) == (label, n)), None)
            if row is None:
                cells += [""] * (len(head) // len(counts))
                continue
            cells += [number(row.value), f"{number(row.least)} to {number(row.most)}"]
            if limit:
                cells.append(f"{row.share:.0%}" if row.share is not None else "")
            cells.append(f"{row.ratio:.2f} x" if row.ratio and not label.startswith("fastllm") else "")
        lines.append(_line(cells))
    return "\n".join(lines)


def _memory(result: Result) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in result.samples:
        if sample.work == "decode":
            groups.setdefault((sample.label, sample.shape), []).append(sample)
    for (label, shape), samples in groups.items():
        most = median(sample.rss_mb for sample in samples)
        yield _line([label, shape, f"{most:,.0f}", f"{samples[0].token_bytes / 1e6:,.1f}"])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def number(value: float) -> str:
    """A number with three significant digits, or all digits before the point if they are more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# ---- the plot ------------------------------------------------------------------------------------------------------


def plot(result: Result, path: Path) -> None:
    """Draws a chart for each work and shape.

    A bar is a peer with a number of threads. A line on it is the speed at which the bytes or multiply-adds of the peer
    would reach the machine's limit.
    """
    from matplotlib.figure import Figure

    panels = [(work, shape) for work in TITLES for shape in SHAPES if rows(result, shape, work)]
    bars = [len({row.label for row in rows(result, shape, work)}) for work, shape in panels]
    columns = 2
    heights = [max(bars[i : i + columns]) + 2 for i in range(0, len(panels), columns)]
    figure = Figure(figsize=(13, sum(heights) * 0.42 + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for i, (work, shape) in enumerate(panels):
        _panel(figure.add_subplot(grid[i // columns, i % columns]), result, work, shape)
    figure.savefig(path, dpi=110)


def _panel(axes: Any, result: Result, work: str, shape: str) -> None:
    table = rows(result, shape, work)
    labels = list(dict.fromkeys(row.label for row in table))
    counts = sorted({row.threads for row in table})
    height = 0.8 / len(counts)
    colors = {True: ("#f4a261", "#d1495b", "#8d1f33"), False: ("#b8c4d6", "#6b7f99", "#3d4f66")}
    for k, n in enumerate(counts):
        for row in (row for row in table if row.threads == n):
            at = labels.index(row.label) + (k - (len(counts) - 1) / 2) * height
            color = colors[row.label.startswith("fastllm")][min(k, 2)]
            axes.barh(at, row.value, height * 0.92, color=color)
            axes.errorbar(row.value, at, xerr=[[row.value - row.least], [row.most - row.value]], color="#333", lw=0.8)
            text = f" {number(row.value)}" + (f"  ({row.share:.0%})" if row.share is not None else "")
            axes.text(row.most, at, text, va="center", fontsize=6.5)
            if row.share:
                limit = row.value / row.share
                axes.plot([limit, limit], [at - height / 2, at + height / 2], color="black", lw=1.2)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    longest = max(row.most for row in table)
    axes.set_xlim(0, longest * 1.3)
    title = TITLES[work] if work != "prefill" else f"a prompt of {SHAPES[shape].prompt}, tokens/s"
    drawn = ", ".join(_threads(n) for n in counts)
    limit = {"decode": "; black: what reading memory allows", "prefill": "; black: the int8 peak"}.get(work, "")
    axes.set_title(f"{shape}: {title}\n({drawn}, from above{limit})", fontsize=8.5, loc="left")
    axes.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
