"""Feed a model in batches and lose nothing: `map_batches` offline, `Batcher` online.

One idea of a batch is under both: rows of any structure are collated, run, and split back into rows. Needs numpy; torch
is optional.
"""

from __future__ import annotations

from mlkit._lazy import lazy

TYPE_CHECKING = False  # every type checker takes it for true

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

if TYPE_CHECKING:
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
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _MODULES = {
        "Batcher": "_online.batcher",
        "BatcherStats": "_online.stats",
        "Engine": "_engines.engine",
        "Loaded": "_engines.loaded",
        "Padded": "_batch.tree",
        "Partition": "_engines.work",
        "Quantiles": "_online.stats",
        "Session": "_engines.engine",
        "Vectorized": "_batch.vectorize",
        "Work": "_engines.work",
        "collate": "_batch.collate",
        "map_batches": "_offline.map",
        "split": "_batch.split",
        "vectorize": "_batch.vectorize",
    }
    __getattr__, __dir__ = lazy(__name__, _MODULES)
