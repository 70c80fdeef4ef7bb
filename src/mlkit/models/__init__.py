"""Versions of models that can be found, trusted, promoted and rolled back.

A `ModelStore` is a folder. `save` makes an immutable, numbered `ModelVersion` with a digest over its weights, spec,
signature and manifest; `load` gives it back after checking every byte; `promote` and `rollback` move an alias and write
down who, when, why and on what evidence.
"""

from __future__ import annotations

from mlkit._lazy import lazy

TYPE_CHECKING = False  # every type checker takes it for true

__all__ = [
    "Broken",
    "Change",
    "Check",
    "Codec",
    "Comparison",
    "Difference",
    "Evidence",
    "Field",
    "KeyProvider",
    "LatencyGate",
    "ModelStore",
    "ModelVersion",
    "PairedGate",
    "Requirement",
    "Signature",
    "Stateful",
    "Sweep",
    "Verification",
    "VersionStore",
    "share_alpha",
    "signed_by",
]

if TYPE_CHECKING:
    from mlkit.models._checks import Check, Evidence
    from mlkit.models._codec import Codec
    from mlkit.models._compare import Comparison, Difference
    from mlkit.models._garbage import Sweep
    from mlkit.models._gates import LatencyGate, PairedGate, share_alpha
    from mlkit.models._protocol import VersionStore
    from mlkit.models._sealed import KeyProvider
    from mlkit.models._signature import Field, Signature
    from mlkit.models._signing import Requirement, signed_by
    from mlkit.models._store import ModelStore
    from mlkit.models._tensors import Stateful
    from mlkit.models._verify import Broken, Verification
    from mlkit.models._version import Change, ModelVersion
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _MODULES = {
        "Broken": "_verify",
        "Change": "_version",
        "Check": "_checks",
        "Codec": "_codec",
        "Comparison": "_compare",
        "Difference": "_compare",
        "Evidence": "_checks",
        "Field": "_signature",
        "KeyProvider": "_sealed",
        "LatencyGate": "_gates",
        "ModelStore": "_store",
        "ModelVersion": "_version",
        "PairedGate": "_gates",
        "Requirement": "_signing",
        "Signature": "_signature",
        "Stateful": "_tensors",
        "Sweep": "_garbage",
        "Verification": "_verify",
        "VersionStore": "_protocol",
        "share_alpha": "_gates",
        "signed_by": "_signing",
    }
    __getattr__, __dir__ = lazy(__name__, _MODULES)
