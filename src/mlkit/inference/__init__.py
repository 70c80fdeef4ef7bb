"""Feed a model in batches and lose nothing: `map_batches` offline, `Batcher` online.

One idea of a batch is under both: rows of any structure are collated, run, and split back into rows. Needs numpy; torch
is optional.
"""

from __future__ import annotations

from mlkit.inference._batcher import Batcher
from mlkit.inference._collate import collate
from mlkit.inference._engine import Engine, Session
from mlkit.inference._loaded import Loaded
from mlkit.inference._map import map_batches
from mlkit.inference._split import split
from mlkit.inference._stats import BatcherStats, Quantiles
from mlkit.inference._tree import Padded
from mlkit.inference._vectorize import Vectorized, vectorize
from mlkit.inference._work import Partition, Work

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
