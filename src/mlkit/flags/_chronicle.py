"""Where the decisions of a rollout are put down: for the other processes, and for the record."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, final

from mlkit.errors import DegradedWarning, FlagFileError
from mlkit.flags._audit import Audit
from mlkit.flags._shared import Folder

if TYPE_CHECKING:
    from mlkit.flags._plan import Plan
    from mlkit.flags._progress import Decision

__all__ = ["Chronicle", "degraded"]


@final
class Chronicle:
    """The folder and the audit of a rollout. Trouble with either is a warning: what was decided stands.

    Args:
        key: The flag.
        candidate: The variant that is brought in.
        plan: The arguments of the rollout.
    """

    folder: Folder | None

    def __init__(self, key: str, candidate: str, plan: Plan) -> None:
        self._key = key
        self.folder = None if plan.folder is None else Folder(plan.folder, key, candidate)
        self._audit = plan.audit
        if self._audit is None and self.folder is not None:
            self._audit = Audit(self.folder.audit)

    def end(self, record: dict[str, Any]) -> None:
        """Tell the other processes of an end, after it is one here."""
        if self.folder is None:
            return
        status = record["status"]
        try:
            with self.folder.lock():
                try:
                    known = (self.folder.state() or {}).get("status")
                except FlagFileError:
                    known = None  # whatever it said, it was no further than an end
                if known not in ("killed", status):
                    self.folder.keep_state(record)
        except OSError as error:
            degraded(f"could not tell the others that it is {status}", self._key, error)

    def write(self, decision: Decision, before: str) -> str | None:
        """Put a decision down for the record, and return the digest of the entry."""
        if self._audit is None:
            return None
        try:
            return self._audit.append(
                decision.action,
                flag=self._key,
                before=before,
                after=decision.digest,
                keys=(self._key,) if before != decision.digest else (),
                reason=decision.reason,
                evidence={"share": decision.share, **decision.evidence},
            )
        except OSError as error:
            degraded(f"could not write {decision.action!r} to the audit", self._key, error)
            return None


def degraded(what: str, key: str, error: Exception) -> None:
    """Warn that something beside the decisions does not work."""
    message = f"the rollout of flag {key!r} {what}: {type(error).__name__}: {error}"
    warnings.warn(message, DegradedWarning, stacklevel=3)
