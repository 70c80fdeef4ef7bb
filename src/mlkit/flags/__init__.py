"""Feature flags and model-version rollouts: change behaviour without a deploy, and come back.

The file is flagd's `flags.json`; the calls are typed handles that never raise. `Flags` holds the flags of a file, a `Flag`
answers for one of them, a `ModelFlag` names a model version, and a `Rollout` brings a new one in, watched by a `Guard`.
"""

from __future__ import annotations

from mlkit.flags._assign import Assignment
from mlkit.flags._document import Change, Problem, Snapshot
from mlkit.flags._explain import Explanation
from mlkit.flags._flag import Details, Flag
from mlkit.flags._flags import Flags
from mlkit.flags._guard import ErrorRate, Guard, Latency
from mlkit.flags._rollout import Decision, ModelFlag, Rollout

__all__ = [
    "Assignment",
    "Change",
    "Decision",
    "Details",
    "ErrorRate",
    "Explanation",
    "Flag",
    "Flags",
    "Guard",
    "Latency",
    "ModelFlag",
    "Problem",
    "Rollout",
    "Snapshot",
]
