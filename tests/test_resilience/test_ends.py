"""What is left when things end: counts at the end of a fallback and of the interpreter."""

from __future__ import annotations

import subprocess
import sys

from mlkit.resilience import constant, fallback, tier
from mlkit.telemetry import Reader


def test_the_counts_of_a_fallback_outlive_it() -> None:
    def counted() -> float:
        wanted = ("fallback", "ends"), ("tier", "max")
        return sum(sample.value for sample in reader.read() if sample.labels == wanted)

    reader = Reader()
    chain = fallback(tier(max, name="max", policy=None), constant(0), name="ends")
    for _ in range(3):
        chain(1, 2)
    before = counted()
    del chain
    assert (before, counted()) == (3, 3)


def test_a_fallback_that_outlives_the_modules_it_needs_ends_silently() -> None:
    code = """
import _thread, mlkit.telemetry
from mlkit.resilience import constant, fallback, tier
chain = fallback(tier(max, policy=None), constant(0))
chain(1, 2)
_thread.kept = [chain, mlkit.telemetry]  # a module that is taken apart after ours
del chain
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
