"""What a history adds up to: which versions there are, who signed them, and who holds and held each alias.

A line of the history is read into objects when somebody asks for it. What is kept of all lines is where the ones that
matter begin, so that a mark can say it in a few bytes and a reader need not read the lines before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, final, get_args

from mlkit.models._codec import is_format
from mlkit.models._folder import checked_digest
from mlkit.models._names import check_alias
from mlkit.models._version import Change, Facts, Kind

__all__ = ["HEAD", "MARK", "MIDDLE", "TAIL", "State", "body_of", "facts_of"]

HEAD, MARK, MIDDLE, TAIL = b'{"sum":"', b'{"mark":"', b'","event":', b"}"
_BODY = len(HEAD) + 64 + len(MIDDLE)
_KINDS = frozenset(get_args(Kind))
_MOVES = frozenset({"promoted", "rolled_back"})


@final
class State:
    """What a history adds up to. Never changed after it was made; `after` gives the next one.

    Args:
        data: The bytes of the file; those of its whole lines are checked.
        end: How many bytes its whole lines have.
        total: The sum of the last event, which the next one goes on from.
        n_changes: How many events there are.
        last: The highest number ever given.
        saved: Where the line of each version that is not deleted begins, by number, in order.
        signed: Where the lines of its signatures begin, by number.
        holders: Who held each alias, the present holder last.
        known: The facts of versions that were read before.
    """

    __slots__ = ("_changes", "data", "end", "holders", "known", "last", "marked_at", "n_changes", "saved", "signed", "sum")  # fmt: skip

    def __init__(
        self,
        data: bytes,
        end: int,
        total: str,
        *,
        n_changes: int = 0,
        last: int = 0,
        saved: Mapping[int, int] | None = None,
        signed: Mapping[int, tuple[int, ...]] | None = None,
        holders: Mapping[str, tuple[int, ...]] | None = None,
        known: dict[int, Facts] | None = None,
    ) -> None:
        self.data, self.end, self.sum = data, end, total
        self.n_changes, self.last = n_changes, last
        self.saved: Mapping[int, int] = {} if saved is None else saved
        self.signed: Mapping[int, tuple[int, ...]] = {} if signed is None else signed
        self.holders: Mapping[str, tuple[int, ...]] = {} if holders is None else holders
        # A number is given once, so what is known of it stays so, whichever thread found it out.
        self.known: dict[int, Facts] = {} if known is None else known
        self.marked_at = 0
        """How many events there were at the last mark."""
        self._changes: tuple[Change, ...] | None = None

    @property
    def versions(self) -> Versions:
        """The versions that are not deleted, by number, in order."""
        return Versions(self)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change, oldest first."""
        changes = self._changes
        if changes is None:
            lines = self.data[: self.end].split(b"\n")
            changes = tuple(
                _change(_event(body_of(line))) for line in lines if line.startswith(HEAD)
            )
            self._changes = changes
        return changes

    def aliases(self) -> dict[str, int]:
        """Return the number that each alias points at."""
        return {alias: held[-1] for alias, held in sorted(self.holders.items())}

    def last_change(self) -> Change:
        """Return what happened last."""
        return next(self._backwards())

    def last_move(self, alias: str) -> Change:
        """Return the change that put an alias where it is.

        Args:
            alias: One that somebody holds.
        """
        return next(
            change
            for change in self._backwards()
            if change.alias == alias and change.kind in _MOVES
        )

    def last_signed(self, number: int, key: str) -> Change:
        """Return the change by which a key signed a version last, or else by which anybody did.

        Args:
            number: The version.
            key: The fingerprint of the key.
        """
        changes = [_change(self._event_at(begin)) for begin in self.signed[number]]
        return ([change for change in changes if key in change.evidence.values()] or changes)[-1]

    def signatures(self, number: int) -> list[str]:
        """Return the digests of the signatures of a version, oldest first.

        Args:
            number: The version.
        """
        return [
            checked_digest(self._event_at(begin)["bundle"]) for begin in self.signed.get(number, ())
        ]

    def facts(self, number: int) -> Facts:
        """Return what the history says of a version.

        Args:
            number: One that is not deleted.
        """
        facts = self.known.get(number)
        if facts is None:
            facts = self.known[number] = facts_of(self._event_at(self.saved[number]))
        return facts

    def used(self) -> set[str]:
        """Return the digests of every blob that a version needs."""
        digests = {digest for number in self.signed for digest in self.signatures(number)}
        for facts in self.versions.values():
            digests |= {facts.digest, facts.payload}
        return digests

    def after(self, line: bytes, total: str, event: dict[str, Any]) -> State:
        """Return the state after one more event.

        Args:
            line: Its line, with its end.
            total: The sum of it.
            event: What it says.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: If it is no event that can happen now.
        """
        after = Folding(self).add(self.end, event).done(self.data[: self.end] + line, total)
        after.marked_at = self.marked_at
        return after

    def marked(self, line: bytes, most: int) -> State:
        """Return the same state after a mark of it, or as it is if the mark would be too long.

        Args:
            line: The mark, with its end.
            most: How long it may be.
        """
        if len(line) > most:
            return self
        after = Folding(self).done(self.data[: self.end] + line, self.sum)
        after.marked_at = self.n_changes
        return after

    def to_mark(self) -> dict[str, Any]:
        """Return everything but the lines themselves, as plain data, for a mark."""
        begins = list(self.saved.values())
        steps = [now - before for before, now in zip([0, *begins], begins, strict=False)]
        return {
            "sum": self.sum,
            "changes": self.n_changes,
            "last": self.last,
            "steps": steps,
            "runs": _runs(self.saved),
            "signed": [[number, *begins] for number, begins in self.signed.items()],
            "holders": {alias: list(held) for alias, held in self.holders.items()},
        }

    def _event_at(self, begin: int) -> dict[str, Any]:
        return _event(body_of(self.data[begin : self.data.index(b"\n", begin)]))

    def _backwards(self) -> Iterator[Change]:
        end = self.end - 1
        while end > 0:
            begin = self.data.rfind(b"\n", 0, end) + 1
            if self.data.startswith(HEAD, begin):
                yield _change(_event(body_of(self.data[begin:end])))
            end = begin - 1


@final
class Folding:
    """A state while events are added to it.

    Args:
        state: Where to begin.
    """

    __slots__ = ("_holders", "_last", "_n_changes", "_saved", "_signed", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._n_changes, self._last = state.n_changes, state.last
        self._saved, self._signed = dict(state.saved), dict(state.signed)
        self._holders = dict(state.holders)

    @property
    def n_changes(self) -> int:
        """How many events there are by now."""
        return self._n_changes

    def add(self, begin: int, event: dict[str, Any]) -> Folding:
        """Add an event, or raise KeyError, TypeError, ValueError or OverflowError if it cannot be.

        Args:
            begin: Where its line begins.
            event: What it says.
        """
        change = _change(event)
        number = change.version
        if change.kind in {"saved", "imported"}:
            self._number(change)
            self._state.known[number] = facts_of(event)
            self._saved[number] = begin
        elif number not in self._saved:
            raise ValueError("no such version")
        elif change.kind == "signed":
            checked_digest(event["bundle"])
            self._signed[number] = (*self._signed.get(number, ()), begin)
        elif change.kind == "deleted":
            self._forget(number)
        elif change.kind != "refused":
            alias = check_alias("alias", change.alias)
            held = _moved(self._holders.pop(alias, ()), change)
            if held:
                self._holders[alias] = held
        self._n_changes += 1
        return self

    def done(self, data: bytes, total: str) -> State:
        """Return the state.

        Args:
            data: All lines.
            total: The sum of the last event.
        """
        return State(
            data,
            len(data),
            total,
            n_changes=self._n_changes,
            last=self._last,
            saved=self._saved,
            signed=self._signed,
            holders=self._holders,
            known=self._state.known,
        )

    def _number(self, change: Change) -> None:
        # What came from another store keeps its number; nothing is ever given a number again.
        step = change.version - self._last
        if step < 1 or (step > 1 and change.kind == "saved"):
            raise ValueError("number")
        self._last = change.version

    def _forget(self, number: int) -> None:
        del self._saved[number]
        self._signed.pop(number, None)
        kept = {alias: _without(held, number) for alias, held in self._holders.items()}
        self._holders = {alias: held for alias, held in kept.items() if held}


@final
class Versions(Mapping[int, Facts]):
    """The versions of a state, read when asked for.

    Args:
        state: The state.
    """

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    def __getitem__(self, number: int) -> Facts:
        return self._state.facts(number)

    def __iter__(self) -> Iterator[int]:
        return iter(self._state.saved)

    def __len__(self) -> int:
        return len(self._state.saved)

    def __contains__(self, number: object) -> bool:
        return number in self._state.saved


def body_of(line: bytes) -> bytes:
    """Return the event of a line of the right form.

    Args:
        line: Without its end.
    """
    return line[_BODY : -len(TAIL)]


def _runs(numbers: Iterable[int]) -> list[list[int]]:
    """Return rising numbers as [first, end) pairs: almost always there is one."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return runs


def facts_of(event: dict[str, Any]) -> Facts:
    """Return what the line of a new version says of it.

    Args:
        event: Its event.
    """
    if not is_format(event["format"]) or not isinstance(event["run"], (str, NoneType)):
        raise ValueError("format or run")
    origin = event.get("origin", event)
    return Facts(
        float(origin["time"]),
        str(origin["who"]),
        checked_digest(event["digest"]),
        checked_digest(event["payload"]),
        event["format"],
        int(event["n_bytes"]),
        event["run"],
        {str(key): float(value) for key, value in dict(event["metrics"]).items()},
        {str(key): str(value) for key, value in dict(event["tags"]).items()},
    )


def _event(body: bytes) -> dict[str, Any]:
    import json

    event: dict[str, Any] = json.loads(body)
    return event


def _change(event: dict[str, Any]) -> Change:
    change = Change(
        event["seq"],
        event["kind"],
        event["version"],
        event.get("alias"),
        event.get("previous"),
        event["who"],
        float(event["time"]),
        event["why"],
        dict(event.get("evidence", {})),
    )
    if change.kind not in _KINDS or type(change.version) is not int:
        raise ValueError("kind")
    return change


def _moved(held: tuple[int, ...], change: Change) -> tuple[int, ...]:
    """Return the holders of an alias after a change: a promotion pushes, a rollback pops, a removal forgets."""
    if change.kind == "promoted":
        return (*held, change.version)
    if change.kind == "alias_removed":
        if not held or held[-1] != change.version:
            raise ValueError("removed from a version that did not hold the alias")
        return ()
    while held and held[-1] != change.version:
        held = held[:-1]
    if not held:
        raise ValueError("rolled back to a version that never held the alias")
    return held


def _without(held: tuple[int, ...], gone: int) -> tuple[int, ...]:
    """Return the holders of an alias without a deleted version, and without a version following itself."""
    kept: list[int] = []
    for number in held:
        if number != gone and kept[-1:] != [number]:
            kept.append(number)
    return tuple(kept)
