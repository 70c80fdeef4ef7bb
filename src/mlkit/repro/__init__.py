"""The same result again, or the exact place where it differs.

Seeds by name, isolation, determinism, data loading, checks, fingerprints and manifests. Importing this module imports
nothing but the standard library.
"""

from __future__ import annotations

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
