"""Words for error messages: the name that was probably meant, and text cut to length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["clip", "closest", "did_you_mean", "listing", "meant"]


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
    wanted = _fold(name)
    matches = get_close_matches(wanted, _likely(wanted, folded), n=limit, cutoff=0.6)
    return [folded[match] for match in matches]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `"; did you mean 'resnet18'?"`, or an empty string if nothing is near.

    Args:
        name: What was asked for.
        names: What there is.
    """
    return meant(closest(name, names))


def meant(suggestions: Iterable[str]) -> str:
    """Return `"; did you mean 'resnet18'?"` for suggestions that were already found.

    Args:
        suggestions: What `closest` returned.
    """
    shown = " or ".join(repr(clip(suggestion, 60)) for suggestion in suggestions)
    return f"; did you mean {shown}?" if shown else ""


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


def _likely(wanted: str, names: Iterable[str], *, enough: int = 100) -> list[str]:
    """Return those of many names that are worth comparing: difflib takes 20 us for each.

    A slip leaves the beginning or the end of a name whole. So these are the names that share the longest beginning, and
    the longest end, and among them those of the nearest length.
    """
    rest = list(names)
    if len(rest) <= 2 * enough:
        return rest
    found: dict[str, None] = {}
    for shares in (str.startswith, str.endswith):
        mine: dict[str, None] = {}
        for size in range(min(len(wanted), 24), 0, -1):
            part = wanted[:size] if shares is str.startswith else wanted[-size:]
            hits = [one for one in rest if shares(one, part) and one not in mine]
            hits.sort(key=lambda one: abs(len(one) - len(wanted)))
            mine.update(dict.fromkeys(hits[: enough - len(mine)]))
            if len(mine) >= enough:
                break
        found |= mine
    return list(found)
