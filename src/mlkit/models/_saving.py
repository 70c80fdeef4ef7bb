"""Making a version of a model: its files first, then its one line of history, with a signature if there is a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.models._folder import WRITABLE
from mlkit.telemetry import Counter, register

if TYPE_CHECKING:
    from mlkit.models._backing import Backing
    from mlkit.models._formats import Trust
    from mlkit.models._signing import Signer
    from mlkit.models._version import ModelVersion

__all__ = ["save"]

_SAVES = Counter("models_saves_total")
register(_SAVES)


def save(
    store: Backing,
    name: str,
    model: object,
    *,
    parts: dict[str, dict[str, Any] | None],
    facts: dict[str, Any],
    why: str,
    trust: Trust | None,
    key: Signer | None,
) -> ModelVersion:
    """Store a model as the next version of *name*.

    Args:
        store: The store.
        name: The model, checked.
        model: What to store.
        parts: Its spec, signature and manifest, as plain data.
        facts: What the history says of it beside what is written: run, metrics, tags.
        why: Why.
        trust: What may need a decision.
        key: Who signs it.
    """
    from mlkit.models._draft import Draft  # a process that only loads never needs it

    with Draft(store.folder) as draft:
        with store.folder.fit(WRITABLE):
            facts = facts | draft.write(model, parts, trust, store.codecs)
        log = store.catalog.log(name)
        with store.folder.lock():
            state = log.read_locked()
            draft.adopt()
            events = [store.event("saved", state.last + 1, why) | facts]
            if key is not None:
                events.append(store.policy.signed_event(events[0], name, key))
            state = log.append(state, *events)
    _SAVES.add()
    return store.catalog.version(name, state, state.last)
