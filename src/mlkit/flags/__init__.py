"""Feature flags and model-version rollouts: change behaviour without a deploy, and come back.

The file is flagd's `flags.json`; the calls are typed handles that never raise. `Flags` holds the flags of a file, a `Flag`
answers for one of them, a `ModelFlag` names a model version, and a `Rollout` brings a new one in, watched by a `Guard`.
"""

from __future__ import annotations

from mlkit._lazy import lazy
from mlkit.flags._document import Change, Problem, Snapshot
from mlkit.flags._flag import Details, Flag
from mlkit.flags._flags import Flags

TYPE_CHECKING = False  # every type checker takes it for true

__all__ = [
    "Assignment",
    "Audit",
    "AuditReport",
    "Change",
    "Decision",
    "Details",
    "ErrorRate",
    "Explanation",
    "Exposures",
    "Flag",
    "FlagDiff",
    "Flags",
    "Guard",
    "Latency",
    "Mean",
    "ModelFlag",
    "Problem",
    "Rollout",
    "Served",
    "ShadowReport",
    "Snapshot",
    "StaleFlag",
    "diff",
    "find_stale",
    "verify_audit",
]

if TYPE_CHECKING:
    from mlkit.flags._assign import Assignment
    from mlkit.flags._audit import Audit, AuditReport, verify_audit
    from mlkit.flags._diff import FlagDiff, diff
    from mlkit.flags._explain import Explanation
    from mlkit.flags._exposures import Exposures
    from mlkit.flags._guard import ErrorRate, Guard, Latency, Mean
    from mlkit.flags._model import ModelFlag
    from mlkit.flags._progress import Decision
    from mlkit.flags._rollout import Rollout
    from mlkit.flags._served import Served
    from mlkit.flags._shadow import ShadowReport
    from mlkit.flags._stale import StaleFlag, find_stale
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _MODULES = {
        "Assignment": "_assign",
        "Audit": "_audit",
        "AuditReport": "_audit",
        "Decision": "_progress",
        "Exposures": "_exposures",
        "ErrorRate": "_guard",
        "Explanation": "_explain",
        "FlagDiff": "_diff",
        "Guard": "_guard",
        "Latency": "_guard",
        "Mean": "_guard",
        "ModelFlag": "_model",
        "Rollout": "_rollout",
        "Served": "_served",
        "ShadowReport": "_shadow",
        "StaleFlag": "_stale",
        "diff": "_diff",
        "find_stale": "_stale",
        "verify_audit": "_audit",
    }
    __getattr__, __dir__ = lazy(__name__, _MODULES)
