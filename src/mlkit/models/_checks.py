"""The gates of a promotion, and what they may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from mlkit.models._version import ModelVersion

__all__ = ["PASSED", "Check", "ask", "named"]

PASSED = "passed"


class Check(Protocol):
    """A gate of a promotion: any callable of a version. It is known by its `__name__`.

    Law: it decides from the version alone, or from what it reads itself; it may be asked any number of times. One that
    raises, or returns anything else than it may, has not let the version pass.
    """

    def __call__(self, version: ModelVersion, /) -> bool | str | None:
        """Return None or True to let *version* pass; False, or the reason as text, not to."""
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


def ask(check: Check, version: ModelVersion) -> str:
    """Return what a check says: `"passed"`, or why not.

    Args:
        check: The check.
        version: What it is asked about.
    """
    try:
        said: object = check(version)
        if said is None:
            return PASSED
        if isinstance(said, str):
            return clip(said, 300) or "refused without a reason"
        if type(said).__name__ in {"bool", "bool_"}:  # NumPy's comparisons return its own
            return PASSED if said else "returned False"
    except Exception as error:  # noqa: BLE001 - a check that cannot judge has not let it pass
        return clip(f"raised {type(error).__name__}: {error}", 300)
    return f"returned a {type(said).__name__}, not True, False, None or a reason"
