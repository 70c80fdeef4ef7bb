"""Changes: entered into the history first, which one writer can for each place, and only then made in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit._clock import Clock, current
from mlkit.errors import AliasConflictError, ModelStoreError
from mlkit.integrations.mlflow_models._history import History, moves
from mlkit.models import Change
from mlkit.models._backing import event_of
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlkit.integrations.mlflow_models._catalog import Catalog
    from mlkit.integrations.mlflow_models._history import Past
    from mlkit.integrations.mlflow_models._server import Server

__all__ = ["Writer"]

_GRACE = 2.0  # seconds that another writer may take between its two requests
# Seconds until the next look at whether it did, doubled each time.
_FIRST_LOOK, _LAST_LOOK = 0.02, 0.32
_MAX_TRIES = 1000  # each one that fails means that another writer got ahead
_OUTSIDE = "not by mlkit"


@final
class Writer:
    """Enters changes and moves aliases. Thread-safe.

    Args:
        server: Where.
        catalog: What MLflow has.
        who: Who is written down.
        clock: Where times come from.
    """

    def __init__(
        self, server: Server, catalog: Catalog, who: str | None, clock: Clock | None
    ) -> None:
        self._server, self._catalog = server, catalog
        self._who, self._clock = who, clock
        self._histories: dict[str, History] = {}

    def history(self, name: str) -> History:
        """Return the history of a model, whether or not it has one yet.

        Args:
            name: A checked name.
        """
        return self._histories.setdefault(name, History(self._server, name, self._clock))

    def event(self, kind: str, number: int, why: str) -> dict[str, Any]:
        return event_of(self._who, self._clock, kind, number, why)

    def enter(
        self, name: str, event: Mapping[str, Any], again: Callable[[], None] = lambda: None
    ) -> Change:
        """Write a change that moves no alias."""
        history = self.history(name)
        for _ in range(_MAX_TRIES):
            change = history.append(len(history.read().changes), event)
            if change is not None:
                return change
            again()
        raise _crowded(name)

    def move(
        self,
        name: str,
        alias: str,
        decide: Callable[[Past, int | None], dict[str, Any] | Change],
    ) -> Change:
        """Move an alias: enter the change, which one writer can for each place, then set the alias.

        Args:
            name: The model.
            alias: The alias.
            decide: Returns what to enter, given the history and the present holder; or a change, to do nothing.
        """
        history = self.history(name)
        clock = current(self._clock)
        waiting_for, since, pause = 0, 0.0, _FIRST_LOOK
        for _ in range(_MAX_TRIES):
            past, now = history.read(), self._catalog.aliases(name).get(alias)
            if past.holder(alias) != now:
                last = past.last_move(alias)
                if last is not None and last.sequence != waiting_for:
                    waiting_for, since, pause = last.sequence, clock.monotonic(), _FIRST_LOOK
                waited = clock.monotonic() - since
                if last is not None and clock.time() - last.time < _GRACE > waited:
                    clock.sleep(pause)  # most likely its writer has yet to set the alias
                    pause = min(2 * pause, _LAST_LOOK)
                    continue
                history.append(len(past.changes), self._as_found(past, alias, now))
                continue
            decided = decide(past, now)
            if isinstance(decided, Change):
                return decided
            change = history.append(len(past.changes), decided)
            if change is not None:
                self.settle(name, alias, change)
                if change.kind == "alias_removed":
                    emit("models.alias.removed", name, alias=alias, previous=change.previous)
                else:
                    about = {"version": change.version, "previous": change.previous}
                    emit("models.alias.moved", name, alias=alias, **about)
                return change
        raise _crowded(name)

    def _as_found(self, past: Past, alias: str, now: int | None) -> dict[str, Any]:
        """Return the entry that says where an alias was found, as a promotion, a step back or a removal."""
        held, was = past.holders.get(alias, ()), past.holder(alias)
        found = {
            "who": _OUTSIDE,
            "time": current(self._clock).time(),
            "why": f"found at {'nothing' if now is None else f'version {now}'}",
            "alias": alias,
            "previous": was,
            "evidence": {_OUTSIDE: "passed"},
        }
        if now is None:
            return {"kind": "alias_removed", "version": was, **found}
        # Where it was before: taken back by somebody, or never moved by a writer that died in between.
        kind = "rolled_back" if held[-2:-1] == (now,) else "promoted"
        return {"kind": kind, "version": now, **found}

    def settle(self, name: str, alias: str, mine: Change) -> None:
        """Set an alias to what the history says last, however many writers do so at once."""
        last, overruled = mine, False
        while True:
            with self._server.asked(missing=f"{name}@{last.version}"):
                if last.kind == "alias_removed":
                    self._server.client.delete_registered_model_alias(name, alias)
                else:
                    self._server.client.set_registered_model_alias(name, alias, str(last.version))
            later = [
                change
                for change in self.history(name).read().changes[last.sequence :]
                if moves(change, alias)
            ]
            # Another writer took this one for dead, and entered that the alias had not moved.
            overruled |= last is mine and bool(later) and _OUTSIDE in later[0].evidence
            if not later:
                break
            last = later[-1]
        if overruled:
            raise AliasConflictError(f"{name}@{alias}", expected=mine.version, got=last.version)


def _crowded(name: str) -> ModelStoreError:
    return ModelStoreError(f"{_MAX_TRIES} other changes of {name!r} came first; try again")
