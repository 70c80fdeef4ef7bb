"""Who saw which variant, said once: the record that an experiment is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit import telemetry
from mlkit._arguments import whole
from mlkit.errors import ConfigurationError
from mlkit.flags._flag import as_unit

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from mlkit.flags._assign import Assignment
    from mlkit.flags._flag import Bound, Details
    from mlkit.flags._store import Store

__all__ = ["Exposures"]

# What was decided for the unit; an override is a test, and in trouble nobody was assigned anything.
_COUNT = frozenset({"STATIC", "TARGETING_MATCH", "DEFAULT"})


@final
class Exposures:
    """The exposures of a set of flags: for each flag, definition, unit and variant one telemetry event.

    The event `flags.flag.exposed` is named after the flag and has `id`, `variant`, `reason` and `digest` (of the flag's
    definition). The id is a BLAKE2b hash of flag, digest, unit and variant: whichever process says it, and however often, it
    is the same, so that a reader can drop the repetitions of other processes and of units that were forgotten here.

    A unit may be a person. It is never in an event as it is; and as anybody who can list all units could try their hashes,
    with a *secret* every hash is keyed by it. Then the event also has `unit`, the keyed hash of the unit, by which exposures
    are joined with outcomes.

    Calls without a unit, overrides, and answers that fell back to the handle's default do not count. Thread-safe; a forked
    child knows what its parent said. Made by `Flags.record_exposures`; `close`, or leaving the context, ends it.
    """

    __slots__ = (
        "__weakref__",
        "_failed",
        "_max",
        "_old",
        "_recent",
        "_secret",
        "_store",
        "_total",
        "said",
    )
    said: dict[str, dict[str, Details[Any]]]

    def __init__(self, store: Store, *, max_units: int, secret: bytes | None) -> None:
        call = "Flags.record_exposures"
        self._max = whole(f"{call}(max_units=...)", max_units, low=1)
        if secret is not None and not (isinstance(secret, bytes) and 16 <= len(secret) <= 64):
            expected = "16 to 64 bytes, or None"
            raise ConfigurationError(f"{call}(secret=...)", type(secret).__name__, expected)
        self._store, self._secret = store, secret
        # By flag, variant and unit: the answer that was given, and the id under which it was said. Two generations, as
        # an LRU needs a lock at every look.
        self._recent: dict[tuple[str, str, str], tuple[Details[Any], str]] = {}
        self._old: dict[tuple[str, str, str], tuple[Details[Any], str]] = {}
        # By flag and unit the last answer that needs no more saying, for the hot path of `mlkit.flags` itself.
        self.said = {}
        self._total = telemetry.Counter("flags_exposures_total", source=store.source)
        self._failed = telemetry.Counter("flags_exposure_failures_total", source=store.source)
        telemetry.register(self)

    @property
    def total(self) -> int:
        """How many were said."""
        return self._total.value

    def samples(self) -> list[telemetry.Sample]:
        """Return the counters, for `mlkit.telemetry`."""
        return [*self._total.samples(), *self._failed.samples()]

    def close(self) -> None:
        """End it; it may be called more than once."""
        if self._store.exposures is self:
            self._store.exposures = None

    def note(self, bound: Bound[Any], unit: Any, answer: Details[Any]) -> None:
        """Say that *unit* was given *answer*, if it was not said; for `mlkit.flags` itself. Never raises."""
        try:
            text = unit if type(unit) is str else as_unit(unit)
            variant = answer.variant
            if text is None or variant is None:
                return
            place = (bound.flag.key, variant, text)
            known = self._recent.get(place)
            # Answers are made once for a snapshot: the same object is the same exposure.
            if known is None or known[0] is not answer:
                if answer.reason not in _COUNT:
                    return
                self._say(bound, place, answer, known)
            self.said.setdefault(bound.flag.key, {})[text] = answer
        except Exception:  # noqa: BLE001 - a flag never raises, whoever listens
            self._failed.add()

    def note_all(self, bound: Bound[Any], units: Iterable[Any], made: Assignment[Any]) -> None:
        """Say it for many units at once; for `mlkit.flags` itself."""
        for unit, answer in zip(units, made, strict=True):
            self.note(bound, unit, answer)

    def _say(
        self,
        bound: Bound[Any],
        place: tuple[str, str, str],
        answer: Details[Any],
        known: tuple[Details[Any], str] | None,
    ) -> None:
        flag, variant, unit = place
        digest = bound.definition.digest if bound.definition is not None else ""
        name = self._hash(flag, digest, unit, variant)
        known = known or self._old.get(place)
        entry = (answer, name)
        if len(self._recent) >= self._max:
            self._old, self._recent, self.said = self._recent, {}, {}
        if known is not None and known[1] == name:
            self._recent[place] = entry
            return
        if known is None:
            # One dictionary operation: of two threads that come here at once, one puts its entry in.
            if self._recent.setdefault(place, entry) is not entry:
                return
        else:
            self._recent[place] = entry
        self._total.add()
        facts: dict[str, str | float | bool | None] = {"id": name, "variant": variant}
        facts |= {"reason": answer.reason, "digest": digest}
        if self._secret is not None:
            facts["unit"] = self._hash(unit)
        telemetry.emit("flags.flag.exposed", flag, **facts)

    def _hash(self, *parts: str) -> str:
        # Not mlkit's digest: a keyed hash is what keeps units from being found by trial.
        from hashlib import blake2b

        made = blake2b(digest_size=16, key=self._secret or b"", person=b"mlkit.exposure")
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            made.update(len(data).to_bytes(8, "little") + data)
        return made.hexdigest()

    def __enter__(self) -> Exposures:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Exposures of {self._store.source!r}: {self.total} said>"
