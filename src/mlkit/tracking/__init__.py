"""A run recorded, whatever happens.

Logging appends to a journal on the local disk and returns; a shipper process delivers the journal
to MLflow and others, and never stands in the training loop's way. What a killed process leaves
behind is complete, and `sync` delivers it.
"""

from __future__ import annotations

from mlkit._lazy import lazy

TYPE_CHECKING = False  # every type checker takes it for true

__all__ = [
    "DataRef",
    "Delivery",
    "JsonlSink",
    "Listening",
    "Point",
    "Record",
    "Run",
    "RunData",
    "RunInfo",
    "RunStatus",
    "Sink",
    "TensorboardSink",
    "find_runs",
    "prune",
    "read",
    "start_run",
    "status",
    "sync",
]

if TYPE_CHECKING:
    from mlkit.tracking._data import DataRef
    from mlkit.tracking._delivery import Delivery
    from mlkit.tracking._listen import Listening
    from mlkit.tracking._prune import prune
    from mlkit.tracking._read import Point, RunData, read
    from mlkit.tracking._records import Record, RunInfo
    from mlkit.tracking._run import Run
    from mlkit.tracking._shipper import sync
    from mlkit.tracking._sink import JsonlSink, Sink
    from mlkit.tracking._start import start_run
    from mlkit.tracking._status import RunStatus, find_runs, status
    from mlkit.tracking._tensorboard import TensorboardSink
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _MODULES = {
        "DataRef": "_data",
        "Delivery": "_delivery",
        "JsonlSink": "_sink",
        "Listening": "_listen",
        "Point": "_read",
        "Record": "_records",
        "Run": "_run",
        "RunData": "_read",
        "RunInfo": "_records",
        "RunStatus": "_status",
        "Sink": "_sink",
        "TensorboardSink": "_tensorboard",
        "find_runs": "_status",
        "prune": "_prune",
        "read": "_read",
        "start_run": "_start",
        "status": "_status",
        "sync": "_shipper",
    }
    __getattr__, __dir__ = lazy(__name__, _MODULES)
