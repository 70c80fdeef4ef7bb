"""Moving aliases: promote, roll back, remove; each one line of the history, entered while nobody else writes."""

from __future__ import annotations

from types import EllipsisType
from typing import TYPE_CHECKING, Literal

from mlkit.errors import AliasConflictError, ChecksFailedError, VersionNotFoundError
from mlkit.models._checks import ask, refusals
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlkit.models._backing import Backing
    from mlkit.models._checks import Check
    from mlkit.models._signing import Requirement
    from mlkit.models._version import Change

__all__ = ["check_holder", "expected_holder", "promote", "remove_alias", "rollback"]


def promote(
    store: Backing,
    name: str,
    number: int,
    *,
    to: str,
    expected: int | EllipsisType | None,
    gates: Mapping[str, Check],
    why: str,
    require: Requirement | None,
) -> Change:
    """Point an alias at a version, if it is where it is expected to be and every check passes.

    Args:
        store: The store.
        name: The model.
        number: The version.
        to: The alias.
        expected: The version that must hold it, None if none may, `...` for any.
        gates: The checks by name; no lock is held while they are asked.
        why: Why.
        require: Who must have signed it, beside whom the store requires.
    """
    state = store.catalog.state(name)
    judged = store.catalog.version(name, state, number)
    store.policy.check_number(name, number, state, require)
    holder = state.aliases().get(to)
    check_holder(f"{name}@{to}", holder, expected)
    evidence = {gate: ask(check, judged) for gate, check in gates.items()}
    failures = refusals(evidence)
    kind: Literal["promoted", "refused"] = "refused" if failures else "promoted"
    log = store.catalog.log(name)
    with store.folder.lock():
        state = log.read_locked()
        store.catalog.version(name, state, number)
        holder_now = state.aliases().get(to)
        if not failures:
            if expected is not ... or gates:  # what was judged was judged against that holder
                check_holder(f"{name}@{to}", holder_now, holder)
            if holder_now == number:
                return state.last_move(to)
        event = store.event(kind, number, why)
        event |= {"alias": to, "previous": holder_now, "evidence": evidence}
        change = log.append(state, event).last_change()
    if failures:
        emit("models.promotion.refused", name, alias=to, version=number)
        raise ChecksFailedError(f"{name}@{number}", failures)
    emit("models.alias.moved", name, alias=to, version=number, previous=holder_now)
    return change


def rollback(
    store: Backing, name: str, alias: str, *, expected: int | EllipsisType, why: str
) -> Change:
    """Point an alias at the version that held it before the present one did.

    Args:
        store: The store.
        name: The model.
        alias: The alias.
        expected: The version that must hold it, `...` for any.
        why: Why.
    """
    store.catalog.state(name)
    log = store.catalog.log(name)
    with store.folder.lock():
        state = log.read_locked()
        held = state.holders.get(alias, ())
        if not held:
            raise store.catalog.missing(f"{name}@{alias}", state)
        check_holder(f"{name}@{alias}", held[-1], expected)
        if len(held) < 2:
            raise VersionNotFoundError(f"{name}@{alias}", before=held[-1])
        now, before = held[-1], held[-2]
        store.policy.check_number(name, before, state)
        event = store.event("rolled_back", before, why) | {"alias": alias, "previous": now}
        change = log.append(state, event).last_change()
    emit("models.alias.moved", name, alias=alias, version=before, previous=now)
    return change


def remove_alias(
    store: Backing, name: str, alias: str, *, expected: int | EllipsisType, why: str
) -> Change:
    """Let an alias point at nothing.

    Args:
        store: The store.
        name: The model.
        alias: The alias.
        expected: The version that must hold it, `...` for any.
        why: Why.
    """
    store.catalog.state(name)
    log = store.catalog.log(name)
    with store.folder.lock():
        state = log.read_locked()
        holder = state.aliases().get(alias)
        if holder is None:
            raise store.catalog.missing(f"{name}@{alias}", state)
        check_holder(f"{name}@{alias}", holder, expected)
        event = store.event("alias_removed", holder, why) | {"alias": alias, "previous": holder}
        change = log.append(state, event).last_change()
    emit("models.alias.removed", name, alias=alias, previous=holder)
    return change


def check_holder(place: str, holder: int | None, expected: int | EllipsisType | None) -> None:
    """Raise unless an alias is held by whom it is expected to be.

    Args:
        place: `name@alias`.
        holder: The version that holds it.
        expected: The version that must, None if none may, `...` for any.
    """
    if expected is not ... and holder != expected:
        raise AliasConflictError(place, expected=expected, got=holder)


def expected_holder(
    number: Callable[[str, str, object], int], where: str, name: str, expect: object
) -> int | EllipsisType:
    """Return the number that a caller expects, or `...`.

    Args:
        number: Gives the number of what callers pass for a version.
        where: The argument, for the error.
        name: The model.
        expect: What the caller passed.
    """
    return expect if isinstance(expect, EllipsisType) else number(where, name, expect)
