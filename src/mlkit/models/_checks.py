"""The gates of a promotion, and what they may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from mlkit._suggest import article, clip
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.models._version import ModelVersion

__all__ = ["Check", "Evidence", "ask", "named", "refusals"]

_PASSED = "passed"
_MAX_FACTS = 40
# What the history keeps of a check: what it said, or of an `Evidence` also its figures.
Said: TypeAlias = "str | Mapping[str, Any]"


class Evidence(NamedTuple):
    """What a check found, with the figures it decided on; all of it is kept in the history.

    Attributes:
        passed: Whether the version may pass.
        why: One sentence for people.
        facts: Estimates, bounds, sample sizes, levels, seeds: at most 40 numbers and short texts by name.
    """

    passed: bool
    why: str
    facts: Mapping[str, float | str | None]


class Check(Protocol):
    """A gate of a promotion: any callable of a version. It is known by its `__name__`.

    Law: it decides from the version alone, or from what it reads itself; it may be asked any number of times. One that
    raises, or returns anything else than it may, has not let the version pass.
    """

    def __call__(self, version: ModelVersion, /) -> bool | str | Evidence | None:
        """Return None or True to let *version* pass; False, or the reason as text, not to; or `Evidence` for either."""
        ...


def named(where: str, checks: object) -> dict[str, Check]:
    """Return checks by their names, which are made unique.

    Args:
        where: The argument, for the error.
        checks: What the caller passed.
    """
    if not isinstance(checks, Sequence) or isinstance(checks, (str, bytes)):
        raise ConfigurationError(where, checks, "a list of callables of one ModelVersion")
    unique_names: dict[str, Check] = {}
    for check in checks:
        if not callable(check):
            raise ConfigurationError(where, check, "callables of one ModelVersion")
        name = clip(str(getattr(check, "__name__", type(check).__name__)), 100)
        unique, copy = name, 1
        while unique in unique_names:
            copy += 1
            unique = f"{name} ({copy})"
        unique_names[unique] = check
    return unique_names


def ask(check: Check, version: ModelVersion) -> Said:
    """Return what a check says: `"passed"`, why not, or its evidence as plain data with `passed` and `why`.

    Args:
        check: The check.
        version: What it is asked about.
    """
    try:
        said: object = check(version)
        if said is None:
            return _PASSED
        if isinstance(said, str):
            return clip(said, 300) or "refused without a reason"
        if isinstance(said, Evidence):
            facts = dict(list(said.facts.items())[:_MAX_FACTS])
            plain = {clip(str(key), 60): _plain(value) for key, value in facts.items()}
            return {**plain, "passed": bool(said.passed), "why": clip(str(said.why), 300)}
        if type(said).__name__ in {"bool", "bool_"}:  # NumPy's comparisons return its own
            return _PASSED if said else "returned False"
    except Exception as error:  # noqa: BLE001 - a check that cannot judge has not let it pass
        return clip(f"raised {type(error).__name__}: {error}", 300)
    return f"returned {article(type(said).__name__)}, not True, False, None, a reason or Evidence"


def refusals(evidence: Mapping[str, Said]) -> dict[str, str]:
    """Return why each check that did not let a version pass did not, by its name.

    Args:
        evidence: What `ask` returned, by name.
    """
    refused = {}
    for name, said in evidence.items():
        if isinstance(said, str):
            if said != _PASSED:
                refused[name] = said
        elif not said["passed"]:
            refused[name] = str(said["why"]) or "refused without a reason"
    return refused


def _plain(value: object) -> float | str | None:
    from math import isfinite

    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and isfinite(value):
        return float(value)
    return clip(str(value), 100)  # JSON has no infinity, and NumPy's numbers are none of its
