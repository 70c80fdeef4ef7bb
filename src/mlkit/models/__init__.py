"""Versions of models that can be found, trusted, promoted and rolled back.

A `ModelStore` is a folder. `save` makes an immutable, numbered `ModelVersion` with a digest over its weights, spec,
signature and manifest; `load` gives it back after checking every byte; `promote` and `rollback` move an alias and write
down who, when, why and on what evidence.
"""

from __future__ import annotations

from mlkit.models._checks import Check, Evidence
from mlkit.models._formats import Stateful
from mlkit.models._gates import LatencyGate, PairedGate, share_alpha
from mlkit.models._store import ModelStore
from mlkit.models._version import Change, ModelVersion

__all__ = [
    "Change",
    "Check",
    "Evidence",
    "LatencyGate",
    "ModelStore",
    "ModelVersion",
    "PairedGate",
    "Stateful",
    "share_alpha",
]
