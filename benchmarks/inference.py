"""Batching against the bare calls and against others, on the same model and the same rows: offline and online."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import inference_offline, inference_online

if TYPE_CHECKING:
    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = (*inference_offline.PEERS, *inference_online.PEERS)


def run(bench: Bench) -> None:
    """Measure offline and online."""
    inference_offline.run(bench)
    inference_online.run(bench)
