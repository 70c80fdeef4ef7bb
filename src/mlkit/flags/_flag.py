"""A typed handle on one flag, and the answer it gives."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, final
from weakref import WeakKeyDictionary

from mlkit._suggest import clip, did_you_mean
from mlkit.flags._scope import SCOPES, view
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlkit.flags._assign import Assignment
    from mlkit.flags._definition import Definition
    from mlkit.flags._document import Snapshot
    from mlkit.flags._store import Declared, Store
    from mlkit.telemetry import Counter

__all__ = ["Bound", "Details", "Flag", "Kind", "as_unit"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Details(NamedTuple, Generic[T]):
    """One answer of a flag, and how it came about. Names and codes are OpenFeature's.

    Attributes:
        value: The value, which is the handle's default on any trouble.
        variant: Name of the variant, None if the value is the handle's default.
        reason: `"STATIC"`, `"TARGETING_MATCH"`, `"DEFAULT"` (no rule matched), `"DISABLED"`, `"ERROR"`, or `"OVERRIDE"`.
        error: What went wrong: `"FLAG_NOT_FOUND"`, `"PARSE_ERROR"`, `"TYPE_MISMATCH"`, `"INVALID_CONTEXT"`,
            `"GENERAL"`, or None.
        message: The same in words, empty if nothing did.
        digest: Digest of the snapshot that answered.
        metadata: Metadata of the flag and its set.
    """

    value: T
    variant: str | None
    reason: str
    error: str | None
    message: str
    digest: str
    metadata: Mapping[str, str | float | bool]


class Kind(Protocol[T_co]):
    """What a handle makes of a variant's value.

    Attributes:
        name: The type, for messages.
        wanted: What it accepts, for messages.
        names_default: Whether the default is the name of a variant.
    """

    name: str
    names_default: bool

    @property
    def wanted(self) -> str: ...

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> T_co:
        """Return *value* as the type, or raise `TypeError`."""
        ...


@final
class Bound(Generic[T]):
    """A handle in one snapshot: every answer it can give is made once."""

    __slots__ = (
        "answers",
        "decide",
        "definition",
        "digest",
        "failures",
        "fixed",
        "flag",
        "flagd",
        "metadata",
    )
    flag: Flag[T]
    digest: str
    flagd: bool
    metadata: Mapping[str, Any]

    def __init__(self, flag: Flag[T], snapshot: Snapshot) -> None:
        self.flag, self.digest = flag, snapshot.digest
        self.definition: Definition | None = snapshot.definitions.get(flag.key)
        self.metadata = self.definition.metadata if self.definition is not None else _EMPTY
        self.answers: dict[str | None, Details[T]] = {}
        self.failures: dict[tuple[str, str], Details[T]] = {}
        self.decide: Callable[[Any], Any] = _no_rule
        self.fixed: Details[T] | None = None
        self.flagd = False
        definition = self.definition
        if definition is None:
            broken = snapshot.broken.get(flag.key)
            self.fixed = self.fail(
                *(
                    ("FLAG_NOT_FOUND", _absent(flag.key, snapshot))
                    if broken is None
                    else ("PARSE_ERROR", broken)
                )
            )
        elif not definition.enabled:
            self.fixed = self.default("DISABLED")
        elif definition.rule is None:
            name = definition.default_variant
            self.fixed = self.default("DEFAULT") if name is None else self.answer(name, "STATIC")
        else:
            self.decide, self.flagd = definition.decide, definition.facts.flagd

    def resolve(self, outcome: Any) -> Details[T]:
        """Return the answer for what the rule said, and keep it for the next time."""
        definition = self.definition
        assert definition is not None  # noqa: S101 - only a definition has a rule
        if outcome is None:
            if None in self.answers:
                return self.answers[None]
            name = definition.default_variant
            made = self.default("DEFAULT") if name is None else self.answer(name, "DEFAULT")
            self.answers[None] = made
            return made
        if type(outcome) is not str:
            from mlkit.flags._coerce import text

            if type(outcome) in {list, dict}:
                return self.fail(
                    "GENERAL",
                    f"the rule gave a {type(outcome).__name__}, not the name of a variant",
                )
            return self.resolve(text(outcome))
        if outcome not in definition.variants:
            # Not kept: what a rule computes from attributes has no bound.
            return self.fail("GENERAL", "the rule gave a name that no variant has")
        made = self.answers[outcome] = self.answer(outcome, "TARGETING_MATCH")
        return made

    def answer(self, variant: str, reason: str) -> Details[T]:
        """Return a variant's value as the handle's type, or the default if it is of another."""
        assert self.definition is not None  # noqa: S101 - only a definition has variants
        try:
            value = self.flag.kind.accept(self.definition.variants[variant], variant, self.metadata)
        except (TypeError, ValueError) as error:
            return self.fail("TYPE_MISMATCH", f"variant {variant!r}: {error}")
        return Details(value, variant, reason, None, "", self.digest, self.metadata)

    def default(self, reason: str, error: str | None = None, message: str = "") -> Details[T]:
        """Return what the handle answers when no variant was chosen."""
        value, variant = self.flag.default, None
        if self.flag.kind.names_default:
            variant = str(value)
            known = self.definition.variants if self.definition is not None else {}
            if variant in known:
                try:
                    value = self.flag.kind.accept(known[variant], variant, self.metadata)
                except (TypeError, ValueError):
                    value = self.flag.default
        return Details(value, variant, reason, error, message, self.digest, self.metadata)

    def fail(self, error: str, message: str) -> Details[T]:
        """Return the default with an error, and say so once per kind of error."""
        made = self.failures.get((error, message))
        if made is None:
            made = self.default("ERROR", error, message)
            if len(self.failures) < 64:
                if not any(code == error for code, _ in self.failures):
                    emit("flags.evaluation.failed", self.flag.key, error=error, digest=self.digest)
                self.failures[error, message] = made
        self.flag.errors.add()
        return made


class Flag(Generic[T]):
    """A typed handle on one flag: call it with a unit and attributes.

    A call never raises and never blocks: on any trouble it returns the default, and `details` says what the trouble was.
    Made by `Flags.bool`, `int`, `float`, `str`, `json`, `enum` and `model`; make it once, at import. Safe to share
    between threads and tasks; it follows its `Flags` across forks and pickles.

    Attributes:
        key: The flag.
        default: What it gives on any trouble.

    Examples:
        >>> from mlkit.flags import Flags
        >>> flags = Flags.in_memory({"batch-size": 64})
        >>> BATCH = flags.int("batch-size", default=32)
        >>> BATCH("user-7"), flags.int("absent", default=32)("user-7")
        (64, 32)
    """

    __slots__ = (
        "__weakref__",
        "_bound",
        "_count",
        "_evaluations",
        "_recent",
        "_store",
        "default",
        "errors",
        "key",
        "kind",
    )
    key: str
    default: T
    kind: Kind[T]
    errors: Counter

    def __init__(
        self, store: Store, key: str, default: T, kind: Kind[T], declared: Declared | None = None
    ) -> None:
        self._store, self.key, self.default, self.kind = store, key, default, kind
        declared = declared or store.declare(key, kind, default)
        self._evaluations, self.errors = declared.evaluations, declared.errors
        self._count = declared.evaluations.one
        self._bound: WeakKeyDictionary[Snapshot, Bound[T]] = WeakKeyDictionary()
        # Until the first call there is no bound one; it is never looked at, as no snapshot is None.
        self._recent: tuple[Snapshot | None, Bound[T]] = (None, None)  # type: ignore[assignment]

    def __call__(self, unit: str | int | None = None, /, **attributes: object) -> T:
        """Return the value for *unit*.

        Args:
            unit: Whom or what to decide for: a user id, a request id; an int is its decimal text. None if nobody.
            **attributes: What rules may ask: `plan="pro"`.
        """
        return self._decide(unit, attributes).value

    def details(self, unit: str | int | None = None, /, **attributes: object) -> Details[T]:
        """Return the value for *unit* and how it came about.

        Args:
            unit: As for a call.
            **attributes: As for a call.
        """
        return self._decide(unit, attributes)

    def assign(
        self, units: Iterable[str | int], table: object = None, /, **columns: Iterable[object]
    ) -> Assignment[T]:
        """Return the same decisions as one call per unit, for many units at once.

        Ids and columns are lists, or one-dimensional NumPy arrays, pandas series, Arrow arrays, or what else exports
        Arrow's C stream (polars, with pyarrow installed). A null (Arrow's, pandas', a masked element) is an attribute
        that is not there, or nobody's id; NaN in NumPy or a list is a value. Columns that the flag's rule does not read
        cost nothing.

        Args:
            units: Ids, texts or ints.
            table: A data frame, an Arrow table or a mapping: each column is the attribute of its name, any text.
            **columns: Further attributes, one value per unit each.

        Returns:
            The assignment, in the order of the units.

        Raises:
            ConfigurationError: If a column has another length than *units*, is no column, or is given twice.
        """
        from mlkit.flags._assign import assign

        made, ids = assign(self, units, table, columns)
        exposures = self._store.exposures
        if exposures is not None:
            seen = view(self._store)
            bound = self.bind(seen.snapshot or self._store.current)
            exposures.note_all(bound, ids.listed(), made)
        return made

    def _decide(self, unit: Any, attributes: dict[str, Any]) -> Details[T]:
        snapshot, bound = self._recent
        try:
            store = self._store
            if snapshot is not store.current or SCOPES.get() is not None:
                seen = view(store)
                bound = self.bind(seen.snapshot or store.current)
                if self.key in seen.values:
                    self._count()
                    return self._override(bound, seen.values[self.key])
            self._count()
            fixed = bound.fixed
            if fixed is not None:
                made = fixed
            else:  # as `answer`, without the cost of a call
                attributes["targetingKey"] = unit if type(unit) is str else as_unit(unit)
                if bound.flagd:
                    attributes["$flagd"] = store.facts(self.key)
                outcome = bound.decide(attributes)
                known = bound.answers.get(outcome) if type(outcome) is str else None
                made = bound.resolve(outcome) if known is None else known
            exposures = store.exposures
            if exposures is not None:
                # Most are said already, to the same answer: then there is nothing to note.
                said = exposures.said.get(self.key)
                if said is None or type(unit) is not str or said.get(unit) is not made:
                    exposures.note(bound, unit, made)
            return made  # noqa: TRY300 - saying it must not raise either
        except Exception as error:  # noqa: BLE001 - a flag never raises, whatever the attributes do
            return self._failed(bound, error)

    def answer(self, bound: Bound[T], unit: Any, attributes: dict[str, Any]) -> Details[T]:
        """Return the answer of a rule; for `mlkit.flags` itself. *attributes* is written to."""
        try:
            attributes["targetingKey"] = unit if type(unit) is str else as_unit(unit)
            if bound.flagd:
                attributes["$flagd"] = self._store.facts(self.key)
            outcome = bound.decide(attributes)
            # What is no text may have no hash.
            made = bound.answers.get(outcome) if type(outcome) is str else None
            return bound.resolve(outcome) if made is None else made
        except Exception as error:  # noqa: BLE001 - as above
            return self._failed(bound, error)

    def facts(self) -> dict[str, Any]:
        """Return what the rule sees as `$flagd` now; for `mlkit.flags` itself."""
        return self._store.facts(self.key)

    def fixed(self, n: int) -> tuple[Bound[T], Details[T] | None]:
        """Count *n* decisions and return what this context sees, with the answer if it is the same for everybody."""
        seen = view(self._store)
        bound = self.bind(seen.snapshot or self._store.current)
        self._evaluations.add(n)
        if self.key in seen.values:
            return bound, self._override(bound, seen.values[self.key])
        return bound, bound.fixed

    def bind(self, snapshot: Snapshot) -> Bound[T]:
        """Return this handle's answers in *snapshot*; for `mlkit.flags` itself."""
        bound = self._bound.get(snapshot)
        if bound is None:
            bound = self._bound[snapshot] = Bound(self, snapshot)
        self._recent = (snapshot, bound)
        return bound

    def _override(self, bound: Bound[T], value: Any) -> Details[T]:
        known = bound.definition.variants if bound.definition is not None else {}
        name = value if type(value) is str and (value in known or self.kind.names_default) else None
        try:
            raw = value if name is None else known.get(name, value)
            made = self.kind.accept(raw, name, bound.metadata)
        except (TypeError, ValueError) as error:
            return bound.fail("TYPE_MISMATCH", f"override: {error}")
        return Details(made, name, "OVERRIDE", None, "", bound.digest, bound.metadata)

    def _failed(self, bound: Bound[T] | None, error: Exception) -> Details[T]:
        from mlkit.flags._coerce import ContextError

        # The text of a foreign error may quote an attribute; its type does not.
        if bound is None:
            self.errors.add()
            return Details(self.default, None, "ERROR", "GENERAL", type(error).__name__, "", _EMPTY)
        if isinstance(error, ContextError):
            return bound.fail("INVALID_CONTEXT", str(error))
        return bound.fail("GENERAL", type(error).__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, self.key, self.default, self.kind)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r}: {self.kind.name}, default {self.default!r}>"


def _absent(key: str, snapshot: Snapshot) -> str:
    return f"there is no flag {clip(key, 60)!r}{did_you_mean(key, [*snapshot.definitions, *snapshot.broken])}"


def _no_rule(_: Any) -> None:
    return None


def as_unit(unit: Any) -> str | None:
    """Return the text that stands for a unit."""
    if unit is None:
        return None
    if isinstance(unit, str):
        return str.__str__(unit)
    if isinstance(unit, int) and not isinstance(unit, bool):
        return int.__repr__(unit)
    if type(unit).__module__ == "numpy" and hasattr(unit, "item"):
        return as_unit(unit.item())
    from mlkit.flags._coerce import ContextError

    raise ContextError(f"a unit is a text or an int, not a {type(unit).__name__}")
