"""Degrade, do not die; and say so.

One `Policy` around a call (retry, breaker, timeout, deadline, limits, hedge), `fallback` from a model to a smaller one, the
last good answer or a prior, gates that decide which answers are good, and provenance that says who answered.

Examples:
    >>> from mlkit.resilience import Breaker, Policy, constant, fallback, tier
    >>> @Policy(retry=3, breaker=Breaker(), on=ConnectionError)
    ... def score(x: float) -> float:
    ...     return 2 * x
    >>> answer = fallback(tier(score), constant(0.0)).explain(1.5)
    >>> answer.value, answer.tier
    (3.0, 'score')
"""

from __future__ import annotations

from mlkit._lazy import lazy
from mlkit.resilience._ambient import deadline, remaining
from mlkit.resilience._backoff import full_jitter
from mlkit.resilience._breaker import Breaker, BreakerStats, seconds
from mlkit.resilience._budget import Budget
from mlkit.resilience._machine import BreakerRecord
from mlkit.resilience._policy import Hedge, Policy, Retry
from mlkit.resilience._threads import Threaded
from mlkit.resilience._verdict import FALL, RAISE, RETRY, Verdict, transient

TYPE_CHECKING = False  # every type checker takes it for true

__all__ = [  # noqa: RUF022 - in the order of `sorted`, as in every module
    "Answer",
    "Breaker",
    "BreakerRecord",
    "BreakerStats",
    "BreakerStorage",
    "Budget",
    "FALL",
    "Fallback",
    "FileStorage",
    "Gate",
    "Hedge",
    "MemoryStorage",
    "Policy",
    "Provenance",
    "RAISE",
    "RETRY",
    "Retry",
    "Threaded",
    "Tier",
    "Trace",
    "Verdict",
    "agrees",
    "confidence",
    "constant",
    "deadline",
    "fallback",
    "finite",
    "full_jitter",
    "in_range",
    "provenance",
    "remaining",
    "seconds",
    "stale",
    "tier",
    "transient",
]

if TYPE_CHECKING:
    from mlkit.resilience._compose import fallback
    from mlkit.resilience._fallback import Fallback
    from mlkit.resilience._gates import Gate
    from mlkit.resilience._judges import agrees, confidence, finite, in_range
    from mlkit.resilience._provenance import Answer, Provenance, Trace, provenance
    from mlkit.resilience._storage import BreakerStorage, FileStorage, MemoryStorage
    from mlkit.resilience._tiers import Tier, constant, stale, tier
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _MODULES = {
        "Answer": "_provenance",
        "BreakerStorage": "_storage",
        "Fallback": "_fallback",
        "FileStorage": "_storage",
        "Gate": "_gates",
        "MemoryStorage": "_storage",
        "Provenance": "_provenance",
        "Tier": "_tiers",
        "Trace": "_provenance",
        "agrees": "_judges",
        "confidence": "_judges",
        "constant": "_tiers",
        "fallback": "_compose",
        "finite": "_judges",
        "in_range": "_judges",
        "provenance": "_provenance",
        "stale": "_tiers",
        "tier": "_tiers",
    }
    __getattr__, __dir__ = lazy(__name__, _MODULES)
