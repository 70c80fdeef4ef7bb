"""Measure contenders on the same work, side by side, and say the ratio rather than the second.

Results are asserted equal before anything is timed. Contenders take turns, round by round, so that
a machine that slows down slows all of them; the order is turned round every other round. A figure
is CPU-noisy like any: read the ratio, and its spread.
"""

from __future__ import annotations

import gc
import json
import operator
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
_SCALE = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class Row(NamedTuple):
    """One contender on one piece of work; times in *unit* per call."""

    work: str
    contender: str
    unit: str
    min: float | None
    median: float | None
    max: float | None
    baseline: str
    ratio: float | None
    note: str = ""


class Bench:
    """Collects the rows of one block.

    Args:
        block: Name of the block, for the title and the result file.
        quick: Fewer rounds, to see that everything runs.
    """

    def __init__(self, block: str, *, quick: bool = False) -> None:
        self.block = block
        self.quick = quick
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.clock: Callable[[], float] = (
            time.perf_counter
        )  # or `time.thread_time`, on a busy machine

    def compare(
        self,
        work: str,
        contenders: dict[str, Callable[[], object]],
        *,
        baseline: str,
        calls: int = 1,
        unit: str = "us",
        equal: Callable[[object, object], bool] = operator.eq,
        rounds: int | None = None,
    ) -> None:
        """Time *contenders* in turn and keep a row for each.

        Args:
            work: What every contender does, as a short title.
            contenders: By name, a function that does the work and returns its result.
            baseline: The contender that the ratios are to: the bare call, the raw loop, the
                physical limit.
            calls: How often one function does the work; times are divided by it.
            unit: `"s"`, `"ms"`, `"us"` or `"ns"`.
            equal: Whether two results are the same.
            rounds: How many rounds; 15 by default, 3 when quick.
        """
        truth = contenders[baseline]()
        for name, contender in contenders.items():
            result = contender()
            if not equal(result, truth):
                raise AssertionError(
                    f"{self.block}, {work}: {name} gives {result!r:.200}, not {truth!r:.200}"
                )
        times = _take_turns(contenders, rounds or (3 if self.quick else 15), self.clock)
        scale = _SCALE[unit] / calls
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, times[baseline], strict=True))
            low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
            self.rows.append(
                Row(work, name, unit, low * scale, middle * scale, high * scale, baseline, ratio)
            )

    def skipped(self, work: str, contender: str, reason: str) -> None:
        """Keep a row for a peer that could not take part.

        Args:
            work: The work it would have done.
            contender: Its name.
            reason: Why it did not.
        """
        self.rows.append(Row(work, contender, "", None, None, None, "", None, reason))

    def note(self, text: str) -> None:
        """Say what a figure means, below the table.

        Args:
            text: One sentence or two.
        """
        self.notes.append(text)

    def table(self) -> str:
        """Return the rows as a Markdown table."""
        lines = [
            "| work | contender | min | median | max | ratio |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for row in self.rows:
            if row.median is None:
                lines.append(f"| {row.work} | {row.contender} | | | | not run: {row.note} |")
                continue
            figures = " | ".join(
                f"{value:.3g} {row.unit}" for value in (row.min, row.median, row.max)
            )
            against = "baseline" if row.contender == row.baseline else f"{row.ratio:.2f}x"
            lines.append(f"| {row.work} | {row.contender} | {figures} | {against} |")
        return "\n".join([*lines, "", *self.notes] if self.notes else lines)

    def save(self, *, keep: bool = False) -> Path:
        """Write the rows to `benchmarks/results/<block>.json` and return its path.

        Args:
            keep: Whether the rows of other works stay as the file has them, and its notes.
        """
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.block}.json"
        if keep:
            before = json.loads(path.read_text(encoding="utf-8"))
            works = {row.work for row in self.rows}
            others = [Row(**row) for row in before["rows"] if row["work"] not in works]
            self.rows = others + self.rows
            self.notes = list(dict.fromkeys(before["notes"] + self.notes))
        content = {
            "block": self.block,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rows": [row._asdict() for row in self.rows],
            "notes": self.notes,
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path


def _take_turns(
    contenders: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order:
                start = clock()
                contenders[name]()
                times[name].append(clock() - start)
                gc.collect(0)
            order.reverse()
    finally:
        if enabled:
            gc.enable()
    return times
