"""Words for error messages: the name that was probably meant, and text cut to length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["clip", "closest", "did_you_mean", "listing"]


def closest(name: str, names: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return up to *limit* of *names* that *name* may be a slip of, best first.

    Case and the choice between `-` and `_` do not count as a difference.

    Args:
        name: What was asked for.
        names: What there is; read once.
        limit: The longest answer.

    Returns:
        Members of *names*, empty if none is near.
    """
    from difflib import get_close_matches  # 2 ms that only a failing call should pay

    folded: dict[str, str] = {}
    for candidate in names:
        folded.setdefault(_fold(candidate), candidate)
    matches = get_close_matches(_fold(name), folded, n=limit, cutoff=0.6)
    return [folded[match] for match in matches]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `"; did you mean 'resnet18'?"`, or an empty string if nothing is near.

    Args:
        name: What was asked for.
        names: What there is.
    """
    matches = closest(name, names)
    if not matches:
        return ""
    return f"; did you mean {' or '.join(repr(clip(match, 60)) for match in matches)}?"


def listing(names: Iterable[str], *, limit: int = 8) -> str:
    """Return *names* as one comma-separated line that stays short however many there are.

    Args:
        names: What there is.
        limit: How many are written out before "and N more".
    """
    ordered = sorted(names)
    if not ordered:
        return "(none)"
    shown = ", ".join(clip(name, 40) for name in ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} and {len(ordered) - limit} more"


def clip(value: object, limit: int = 80) -> str:
    """Return *value* as text of at most *limit* characters, cut in the middle.

    A value that is not a string is shown by its `repr`; one whose `repr` fails, by its type.

    Args:
        value: What to show.
        limit: The longest text, at least 5.
    """
    if isinstance(value, str):
        text = value
    else:
        try:
            text = repr(value)
        except Exception:  # noqa: BLE001 - a broken repr must not hide the error being reported
            text = f"<{type(value).__name__}>"
    if len(text) <= limit:
        return text
    head = (limit - 3) // 2
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")
