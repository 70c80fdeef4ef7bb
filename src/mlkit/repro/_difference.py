"""What differs between two manifests, as sentences."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from mlkit._digest import digest, is_digest, short

__all__ = ["Difference", "compare"]


class Difference(NamedTuple):
    """One difference between two manifests; its text is a sentence.

    Attributes:
        section: `"code"`, `"data"`, `"spec"`, `"params"`, `"seeds"`, `"packages"` or `"environment"`.
        name: Which part of it, dotted: `"torch"`, `"variables.OMP_NUM_THREADS"`.
        kind: `"added"`, `"removed"` or `"changed"`.
        before: Its value in the first manifest; None if it was added.
        after: Its value in the second; None if it was removed.
    """

    section: str
    name: str
    kind: Literal["added", "removed", "changed"]
    before: Any
    after: Any

    def __str__(self) -> str:
        noun = _NOUNS.get(self.section, self.section)
        what = f"{noun} {self.name}".strip()
        if self.kind == "added":
            return f"{what} is new: {_shown(self.after)}"
        if self.kind == "removed":
            return f"{what} is gone; it was {_shown(self.before)}"
        before, after = _shown(self.before), _shown(self.after)
        if before == after:  # both are cut where they differ
            return f"{what} changed in the middle of {before}"
        return f"{what} changed from {before} to {after}"


_NOUNS = {"params": "param", "packages": "package", "environment": ""}


def compare(section: str, name: str, before: Any, after: Any, changes: list[Difference]) -> None:
    """Append to *changes* what differs between two values of a section, leaf by leaf."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if digest(before) != digest(after):
            changes.append(Difference(section, name, "changed", before, after))
        return
    for key in sorted({*before, *after}):
        inner = f"{name}.{key}" if name else key
        if key not in before:
            changes.append(Difference(section, inner, "added", None, after[key]))
        elif key not in after:
            changes.append(Difference(section, inner, "removed", before[key], None))
        else:
            compare(section, inner, before[key], after[key], changes)


def _shown(value: Any) -> str:
    from mlkit._suggest import clip

    if isinstance(value, str):
        return short(value) if is_digest(value) else clip(value, 60)
    return clip(value, 60)
