"""Words for error messages: the name that was probably meant, and text cut to length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["article", "clip", "closest", "did_you_mean", "listing", "meant", "said"]

_COMPARED = 500  # names, letter by letter: some 3 ms


def closest(name: str, names: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return up to *limit* of *names* that *name* may be a slip of, best first.

    Case and the choice between `-` and `_` do not count as a difference.

    Args:
        name: What was asked for.
        names: What there is; read once.
        limit: The longest answer.

    Returns:
        Members of *names*, empty if none is near.

    Note:
        What `difflib.get_close_matches` finds, in its order, without comparing letter by letter what cannot be among
        the best. Of more than 500 names that could be (they have the same letters, as digests do), the 500 that
        share the most with *name*. A few milliseconds for ten thousand names.
    """
    known = list(names)
    folded: dict[str, str] = {}
    for key, candidate in zip(_each(known, _fold), known, strict=True):
        folded.setdefault(key, candidate)
    return [folded[key] for key in _nearest(_fold(name), list(folded), limit)]


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


def article(name: str) -> str:
    """Return the name of a type with its article: `"an int"`, `"a str"`."""
    return f"an {name}" if name[:1].lower() in ("a", "e", "i", "o") else f"a {name}"


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


def said(error: BaseException) -> str:
    """Return the text of an error of a user, or a stand-in if its `str` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - as above
        return "<its text cannot be shown>"


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


def _each(texts: list[str], change: Callable[[str], str]) -> list[str]:
    """Return each text changed; all of them in one call, unless they contain line ends themselves."""
    changed = change("\n".join(texts)).split("\n")
    return changed if len(changed) == len(texts) else [change(text) for text in texts]


def _nearest(wanted: str, names: list[str], limit: int, cutoff: float = 0.6) -> list[str]:
    """Return what `difflib.get_close_matches` does, in less time.

    difflib takes 20 us for a name, and its result for one is `2 * matched letters / all letters`. Two upper bounds of
    the matched letters decide whom to ask: the letters of a name that *wanted* has at all, which needs no loop over
    names, and the longest common subsequence.
    """
    from difflib import SequenceMatcher  # 2 ms that only a failing call should pay

    matcher = SequenceMatcher(None, "", wanted)
    common = _common(wanted)
    best: list[tuple[float, str]] = []
    left = _COMPARED
    for bound, likely in _by_letters(wanted, names):
        if bound < cutoff or (len(best) == limit and bound < best[-1][0]) or not left:
            break
        group = likely if len(likely) <= left else _sharing(wanted, likely, left)
        left -= len(group)
        ranked = [(_ratio(common(name), name, wanted), name) for name in group]
        for candidate in sorted(ranked, reverse=True):
            if candidate[0] < cutoff or (len(best) == limit and candidate < best[-1]):
                break
            matcher.set_seq1(candidate[1])
            score = matcher.ratio()
            if score >= cutoff:
                best = sorted([*best, (score, candidate[1])], reverse=True)[:limit]
    return [name for _, name in best]


def _by_letters(wanted: str, names: list[str]) -> list[tuple[float, list[str]]]:
    """Return the names with the best result that their letters allow in any order, best first."""
    own = dict.fromkeys(map(ord, wanted))
    if "\n" in wanted:
        foreign = [name.translate(own) for name in names]
    else:
        foreign = _each(names, lambda text: text.translate(own))
    groups: dict[tuple[int, int], list[str]] = {}
    for name, key in zip(names, zip(map(len, names), map(len, foreign), strict=True), strict=True):
        group = groups.get(key)
        if group is None:
            groups[key] = [name]
        else:
            group.append(name)
    bounds = [
        (_ratio(min(size - other, len(wanted)), group[0], wanted), group)
        for (size, other), group in groups.items()
    ]
    return sorted(bounds, key=lambda item: item[0], reverse=True)


def _sharing(wanted: str, names: list[str], n: int) -> list[str]:
    """Return the *n* names that have the most pieces of *wanted* in them: what is nearly it has nearly all."""
    from collections import Counter

    size = max(2, len(wanted) // 4)
    shared = Counter[str]()
    for start in range(0, len(wanted), size):
        piece = wanted[start : start + size]
        shared.update([name for name in names if piece in name])
    return [name for name, _ in shared.most_common(n)]


def _common(wanted: str) -> Callable[[str], int]:
    """Return a function that counts the longest common subsequence of a text and *wanted*.

    Note:
        H. Hyyro, "Bit-parallel LCS-length computation revisited", 2004: one addition a letter, on numbers with a bit
        for each letter of *wanted*. Names that differ in their last two letters only share the work before these.
    """
    places: dict[str, int] = {}
    for index, letter in enumerate(wanted):
        places[letter] = places.get(letter, 0) | 1 << index
    everywhere = (1 << len(wanted)) - 1
    stems: dict[str, int] = {}

    def advance(row: int, text: str) -> int:
        for letter in text:
            if letter in places:
                hits = row & places[letter]
                row = (row + hits) | (row - hits)
        return row

    def common(text: str) -> int:
        stem = text[:-2]
        row = stems.get(stem)
        if row is None:
            row = stems[stem] = advance(everywhere, stem)
        return (~advance(row, text[-2:]) & everywhere).bit_count()

    return common


def _ratio(matched: int, name: str, wanted: str) -> float:
    total = len(name) + len(wanted)
    return 2.0 * matched / total if total else 1.0
