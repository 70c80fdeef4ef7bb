"""Feed a model in batches and lose nothing: `map_batches` offline, `Batcher` online.

One idea of a batch is under both: rows of any structure are collated, run, and split back into rows. Needs numpy; torch
is optional.
"""

from __future__ import annotations

from mlkit.inference._batch.collate import collate
from mlkit.inference._batch.split import split
from mlkit.inference._batch.tree import Padded
from mlkit.inference._batch.vectorize import Vectorized, vectorize
from mlkit.inference._engines.engine import Engine, Session
from mlkit.inference._engines.loaded import Loaded
from mlkit.inference._engines.work import Partition, Work
from mlkit.inference._offline.map import map_batches
from mlkit.inference._online.batcher import Batcher
from mlkit.inference._online.stats import BatcherStats, Quantiles

__all__ = [
    "Batcher",
    "BatcherStats",
    "Engine",
    "Loaded",
    "Padded",
    "Partition",
    "Quantiles",
    "Session",
    "Vectorized",
    "Work",
    "collate",
    "map_batches",
    "split",
    "vectorize",
]
