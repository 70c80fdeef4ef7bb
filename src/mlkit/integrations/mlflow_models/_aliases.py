"""Moving aliases over MLflow: what is decided, given the history and where MLflow says that the alias is now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.errors import ChecksFailedError, VersionNotFoundError
from mlkit.integrations.mlflow_models._foreign import digest_of_files
from mlkit.integrations.mlflow_models._history import without
from mlkit.models._aliases import check_holder
from mlkit.models._checks import ask, refusals
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import EllipsisType

    from mlkit.integrations.mlflow_models._backing import Backing
    from mlkit.integrations.mlflow_models._catalog import Found
    from mlkit.integrations.mlflow_models._history import Past
    from mlkit.models import Change, Check, Requirement

__all__ = ["promote", "remove_alias", "rollback"]


def promote(
    store: Backing,
    found: Found,
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
        found: The version.
        to: The alias.
        expected: The version that must hold it, None if none may, `...` for any.
        gates: The checks by name.
        why: Why.
        require: Who must have signed it, beside whom the store requires.
    """
    name, number = found.name, found.number
    store.signatures.check(found, require)
    holder = store.catalog.aliases(name).get(to)
    check_holder(f"{name}@{to}", holder, expected)
    judged = store.catalog.version(found)
    evidence = {gate: ask(check, judged) for gate, check in gates.items()}
    if failures := refusals(evidence):
        event = store.writer.event("refused", number, why)
        store.writer.enter(name, event | {"alias": to, "previous": holder, "evidence": evidence})
        emit("models.promotion.refused", name, alias=to, version=number)
        raise ChecksFailedError(f"{name}@{number}", failures)
    # What another client logged has no digest of its own; from here on it has this one.
    pin = {} if found.digest else {"artifacts": digest_of_files(store.server, found.location)}

    def decide(past: Past, now: int | None) -> dict[str, Any] | Change:
        store.catalog.numbered(name, number)
        if expected is not ... or gates:  # what was judged was judged against that holder
            check_holder(f"{name}@{to}", now, holder)
        last = past.last_move(to)
        if now == number and last is not None:
            return last
        event = store.writer.event("promoted", number, why)
        return event | {"alias": to, "previous": now, "evidence": evidence} | pin

    return store.writer.move(name, to, decide)


def rollback(
    store: Backing, name: str, alias: str, *, expected: int | EllipsisType, why: str
) -> Change:
    """Point an alias at the version that held it before, as far as the history knows.

    Args:
        store: The store.
        name: The model.
        alias: The alias.
        expected: The version that must hold it, `...` for any.
        why: Why.
    """
    _check_held(store, name, alias)

    def decide(past: Past, now: int | None) -> dict[str, Any]:
        present = _present(store, name, alias, now)
        check_holder(f"{name}@{alias}", present, expected)
        held = past.holders.get(alias, ())
        for gone in set(held) - {found.number for found in store.catalog.all(name)}:
            held = without(held, gone)  # by another client, of which the history knows nothing
        if len(held) < 2:
            raise VersionNotFoundError(f"{name}@{alias}", before=now)
        if store.signatures.requirement is not None:
            store.signatures.check(store.catalog.numbered(name, held[-2]))
        event = store.writer.event("rolled_back", held[-2], why)
        return event | {"alias": alias, "previous": present}

    return store.writer.move(name, alias, decide)


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
    _check_held(store, name, alias)

    def decide(_: Past, now: int | None) -> dict[str, Any]:
        present = _present(store, name, alias, now)
        check_holder(f"{name}@{alias}", present, expected)
        event = store.writer.event("alias_removed", present, why)
        return event | {"alias": alias, "previous": present}

    return store.writer.move(name, alias, decide)


def _check_held(store: Backing, name: str, alias: str) -> None:
    known = store.catalog.aliases(name)
    if alias not in known:
        raise store.catalog.missing(f"{name}@{alias}", name, known)


def _present(store: Backing, name: str, alias: str, now: int | None) -> int:
    if now is None:
        raise store.catalog.missing(f"{name}@{alias}", name, {})
    return now
