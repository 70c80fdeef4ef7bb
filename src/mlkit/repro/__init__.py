"""The same result again, or the exact place where it differs.

Seeds by name, isolation, determinism, data loading, checks, fingerprints and manifests. Importing this module imports
nothing but the standard library.
"""

from __future__ import annotations

from mlkit._lazy import lazy

TYPE_CHECKING = False  # every type checker takes it for true

__all__ = [
    "Difference",
    "Divergence",
    "Finding",
    "InvarianceReport",
    "Keyed",
    "KeyedSampler",
    "Manifest",
    "Recording",
    "RerunVerdict",
    "ResultDifference",
    "RngState",
    "SeedReport",
    "Seeds",
    "TraceRecorder",
    "audit",
    "batch_invariance",
    "check",
    "compare",
    "deterministic",
    "fingerprint",
    "isolated",
    "loader_kwargs",
    "record",
    "rng_state",
    "seed_all",
    "seed_everything",
]

if TYPE_CHECKING:
    from mlkit.repro._check import check
    from mlkit.repro._determinism import Finding, audit, deterministic
    from mlkit.repro._difference import Difference
    from mlkit.repro._divergence import Divergence
    from mlkit.repro._fingerprint import fingerprint
    from mlkit.repro._invariance import InvarianceReport, batch_invariance
    from mlkit.repro._loading import Keyed, KeyedSampler, loader_kwargs
    from mlkit.repro._manifest import Manifest
    from mlkit.repro._recorder import TraceRecorder, compare, record
    from mlkit.repro._recording import Recording
    from mlkit.repro._rerun import RerunVerdict
    from mlkit.repro._results import ResultDifference
    from mlkit.repro._rng_state import RngState, rng_state
    from mlkit.repro._seeding import SeedReport, isolated, seed_all, seed_everything
    from mlkit.repro._seeds import Seeds
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _MODULES = {
        "Difference": "_difference",
        "Divergence": "_divergence",
        "Finding": "_determinism",
        "InvarianceReport": "_invariance",
        "Keyed": "_loading",
        "KeyedSampler": "_loading",
        "Manifest": "_manifest",
        "Recording": "_recording",
        "RerunVerdict": "_rerun",
        "ResultDifference": "_results",
        "RngState": "_rng_state",
        "SeedReport": "_seeding",
        "Seeds": "_seeds",
        "TraceRecorder": "_recorder",
        "audit": "_determinism",
        "batch_invariance": "_invariance",
        "check": "_check",
        "compare": "_recorder",
        "deterministic": "_determinism",
        "fingerprint": "_fingerprint",
        "isolated": "_seeding",
        "loader_kwargs": "_loading",
        "record": "_recorder",
        "rng_state": "_rng_state",
        "seed_all": "_seeding",
        "seed_everything": "_seeding",
    }
    __getattr__, __dir__ = lazy(__name__, _MODULES)
