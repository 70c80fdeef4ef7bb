"""From tiers to a fallback: what goes together, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from mlkit._arguments import one_of
from mlkit.errors import ConfigurationError
from mlkit.resilience._fallback import Fallback
from mlkit.resilience._settings import MODES, checked_name
from mlkit.resilience._tiers import Tier, tier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["fallback"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


# Two, since mypy takes nothing from a union that an argument of type Any is passed to.
@overload
def fallback(
    first: Callable[_P, _R],
    /,
    *tiers: Callable[..., Any] | Tier[..., Any],
    per_row: bool | Sequence[str] = ...,
    stream: str | None = ...,
    name: str | None = ...,
) -> Fallback[_P, _R]: ...
@overload
def fallback(
    first: Tier[_P, _R],
    /,
    *tiers: Callable[..., Any] | Tier[..., Any],
    per_row: bool | Sequence[str] = ...,
    stream: str | None = ...,
    name: str | None = ...,
) -> Fallback[_P, _R]: ...
def fallback(
    first: Callable[_P, _R] | Tier[_P, _R],
    /,
    *tiers: Callable[..., Any] | Tier[..., Any],
    per_row: bool | Sequence[str] = False,
    stream: str | None = None,
    name: str | None = None,
) -> Fallback[_P, _R]:
    """Return a callable that asks tiers from the first to the last until one gives a good answer.

    Args:
        first: The best tier; a bare function stands for `tier(function)`.
        *tiers: The next best, down to what cannot fail: `stale(...)`, `constant(...)`.
        per_row: Whether the first argument is a batch of which only the rows without a good answer go down a tier; or the
            names of the arguments that are, if there are several. A batch is a NumPy array, torch tensor, list or tuple
            of rows, or pandas table, rows first, or a dict, dataclass, named tuple or tuple of batches. Answers must be
            batches with one row for each. They come back in place: kind, dtype and device are those of the first tier that
            returned, unless none of its rows is used and the others do not fit. What is no batch inside an answer (None,
            a text, a number) must be equal in all tiers of which a row is used. The identical object is returned if one
            tier answers every row; no answer or argument is changed in place.
        stream: For generator functions, whether the tier is decided before the first item (`"open"`, the default) or
            after the last one (`"buffer"`). A gate judges the first item, or the list of all items.
        name: Name in errors and telemetry; default the first tier's.

    Returns:
        The callable, with the signature of *first*.

    Raises:
        ConfigurationError: If a tier is not callable, two have the same name, a `stale` is first, or an argument is not
            what it must be.

    Examples:
        >>> import numpy as np
        >>> from mlkit.resilience import constant, finite
        >>> def big(x: np.ndarray) -> np.ndarray:
        ...     return np.log(x)
        >>> score = fallback(tier(big, accept=finite), constant(-1.0), per_row=True)
        >>> with np.errstate(divide="ignore"):
        ...     score(np.array([1.0, 0.0]))
        array([ 0., -1.])
    """
    given: tuple[Any, ...] = (first, *tiers)
    steps = tuple(one if isinstance(one, Tier) else tier(one) for one in given)
    if steps[0].kind == "stale":
        raise ConfigurationError(
            "fallback(first)", steps[0], "a tier that gives answers to keep, before a stale one"
        )
    names = [one.name for one in steps]
    for one in names:
        if names.count(one) > 1:
            raise ConfigurationError(
                "fallback(*tiers)", one, "tiers of different names", hint="give tier(name=...)"
            )
    label = checked_name("fallback(name=...)", name) or names[0]
    rows = _checked_rows(per_row)
    return Fallback(steps, per_row=rows, name=label, stream=_checked_stream(steps, stream, rows))


def _checked_rows(per_row: bool | Sequence[str]) -> bool | tuple[str, ...]:  # noqa: FBT001 - the argument itself
    if isinstance(per_row, bool):
        return per_row
    names = tuple(per_row) if isinstance(per_row, (list, tuple)) else ()
    if not names or not all(isinstance(one, str) for one in names):
        raise ConfigurationError(
            "fallback(per_row=...)", per_row, "True, False, or the names of arguments"
        )
    return names


def _checked_stream(
    steps: tuple[Tier[..., Any], ...],
    stream: str | None,
    per_row: bool | tuple[str, ...],  # noqa: FBT001 - as above
) -> str | None:
    mode = None if stream is None else one_of("fallback(stream=...)", stream, MODES)
    if not any(one.kind == "stream" for one in steps):
        if mode is not None:
            raise ConfigurationError(
                "fallback(stream=...)", mode, "at least one tier that is a generator function"
            )
        return None
    if per_row:
        raise ConfigurationError(
            "fallback(per_row=...)", per_row, "False for generators: a stream has no rows"
        )
    if any(one.kind == "stale" for one in steps):
        raise ConfigurationError(
            "fallback(*tiers)", "stale", "no stale tier among generators: a stream is not kept"
        )
    return mode or "open"
