"""Every error and warning that mlkit raises, in one tree.

Each error also is the builtin that a caller would catch, carries its data as attributes, says what
happened with which value, what was expected and what to do, and survives a pickle (process pools)
with its attributes and notes.

```text
MlkitError
├── ConfigurationError (ValueError)          an argument is wrong: which one, its value, what was expected
├── MissingDependencyError (ImportError)     an optional package is absent: the install line
├── DigestError (TypeError)                  a value has no canonical encoding
├── RegistryError
│   ├── UnknownNameError (KeyError)          nothing is registered under the name
│   ├── DuplicateNameError (ValueError)      two owners register one name
│   ├── EntryError (ImportError)             a registered entry cannot be imported or is not what it must be
│   ├── RegistryFrozenError (RuntimeError)   something is registered after `freeze()`
│   ├── SpecError (ValueError)               a spec does not fit: every problem at once
│   └── NoCandidateError (LookupError)       no strategy accepts the context: why each one declined
├── ReproError
│   ├── FingerprintError (TypeError)         content that cannot be hashed faithfully
│   ├── RngStateError (ValueError)           a saved generator state does not fit this process
│   ├── ManifestError (ValueError)           a manifest cannot be read or captured
│   └── TraceError (ValueError)              the file of a recorded trace cannot be read
├── InferenceError
│   ├── CollateError (ValueError)            rows cannot be put into one batch
│   ├── OutputShapeError (ValueError)        the model returned another number of rows than it was given
│   ├── RowError (ValueError)                one row breaks the model: which one, and its cause
│   ├── CheckpointError (ValueError)         a checkpoint of `map_batches` is of another job, in use, or cannot be written
│   ├── EngineError (RuntimeError)           an engine could not run the work: no cluster, no model there, a worker gone
│   ├── OverloadedError (RuntimeError)       a batcher rejected a row on arrival: `reason`, `retry_after`
│   │   └── QueueFullError                   because its queue is full
│   └── BatcherClosedError (RuntimeError)    the batcher no longer accepts rows
├── DeadlineExceededError (TimeoutError)     time ran out
├── RejectedError (RuntimeError)             resilience refused to call: `retry_after`
│   ├── BreakerOpenError                     the circuit breaker is open
│   ├── BulkheadFullError                    too many calls in flight
│   └── RateLimitedError                     too many calls per second
├── ResultRejectedError (ValueError)         an answer came, and a gate did not accept it
├── RowsMismatchError (ValueError)           rows of a tier do not fit among those of the tiers above
├── AllTiersFailedError (ExceptionGroup)     every tier of a fallback failed: all their errors
├── FlagError
│   ├── FlagFileError (ValueError)           a flag file cannot be used at all
│   └── FlagTypeError (TypeError)            a handle and its definition disagree
├── TrackingError
│   ├── ParamConflictError (ValueError)      a param was logged before with another value
│   ├── RunClosedError (RuntimeError)        the run has ended
│   ├── RunNotFoundError (LookupError)       no journal at that place
│   ├── JournalError (ValueError)            a journal cannot be read
│   ├── SinkUnavailableError (ConnectionError)   a backend cannot be reached now: try again
│   └── SinkRejectedError (ValueError)       a backend will never take this record
└── ModelStoreError
    ├── VersionNotFoundError (LookupError)   no such model, version or alias
    ├── IntegrityError (ValueError)          stored bytes are not the bytes that were saved
    ├── AliasConflictError (RuntimeError)    the alias moved meanwhile (compare-and-swap)
    ├── ChecksFailedError (RuntimeError)     a gate refused the promotion
    ├── VersionInUseError (ValueError)       an alias still points at the version
    ├── NumberTakenError (ValueError)        the store gave the number of an imported version to another
    ├── SignatureError (ValueError)          nobody whom you require has signed the version
    ├── SealError (LookupError)              a sealed file cannot be opened with the keys there are
    ├── StoreLockedError (TimeoutError)      another writer held the store for too long
    ├── StoreUnavailableError (ConnectionError)  a store on a server cannot be asked now
    ├── RebuildError (ValueError)            what the spec builds does not take the stored weights
    ├── ModelInputError (ValueError)         what a model is given is not what its signature says: each place
    ├── UnknownFormatError (LookupError)     a version is stored in a format that no codec of the store has
    └── UntrustedFormatError (ValueError)    loading would run code from the file

MlkitWarning (UserWarning)
├── NondeterminismWarning                    something here can change results between runs
├── DegradedWarning                          the work goes on, but something beside it failed, or most of it
└── TrackingWarning                          a run was left open, or records could not be delivered
```
"""

from __future__ import annotations

from math import inf as _inf
from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip, closest, did_you_mean, listing, meant, said

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

__all__ = [
    "AliasConflictError",
    "AllTiersFailedError",
    "BatcherClosedError",
    "BreakerOpenError",
    "BulkheadFullError",
    "CheckpointError",
    "ChecksFailedError",
    "CollateError",
    "ConfigurationError",
    "DeadlineExceededError",
    "DegradedWarning",
    "DigestError",
    "DuplicateNameError",
    "EngineError",
    "EntryError",
    "FingerprintError",
    "FlagError",
    "FlagFileError",
    "FlagTypeError",
    "InferenceError",
    "IntegrityError",
    "JournalError",
    "ManifestError",
    "MissingDependencyError",
    "MlkitError",
    "MlkitWarning",
    "ModelInputError",
    "ModelStoreError",
    "NoCandidateError",
    "NondeterminismWarning",
    "NumberTakenError",
    "OutputShapeError",
    "OverloadedError",
    "ParamConflictError",
    "QueueFullError",
    "RateLimitedError",
    "RebuildError",
    "RegistryError",
    "RegistryFrozenError",
    "RejectedError",
    "ReproError",
    "ResultRejectedError",
    "RngStateError",
    "RowError",
    "RowsMismatchError",
    "RunClosedError",
    "RunNotFoundError",
    "SealError",
    "SignatureError",
    "SinkRejectedError",
    "SinkUnavailableError",
    "SpecError",
    "SpecProblem",
    "StoreLockedError",
    "StoreUnavailableError",
    "TraceError",
    "TrackingError",
    "TrackingWarning",
    "UnknownFormatError",
    "UnknownNameError",
    "UntrustedFormatError",
    "VersionInUseError",
    "VersionNotFoundError",
]

_MAX_MESSAGE = 600


def _rebuild(kind: type[MlkitError], args: tuple[Any, ...]) -> MlkitError:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class MlkitError(Exception):
    """Base of every error of mlkit.

    Args:
        message: What happened, with the value, what was expected and what to do. Longer than 600
            characters, it is cut in the middle.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(clip(message, _MAX_MESSAGE))

    def __str__(self) -> str:
        # KeyError would show the repr of its argument.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # The message is already built, so __init__ (whose arguments differ per class) is not called
        # again.
        return _rebuild, (type(self), self.args), {**self.__dict__}


class ConfigurationError(MlkitError, ValueError):
    """An argument of a public call is wrong.

    Args:
        argument: Where the value came from: `"Batcher(max_wait=...)"`, `"MLKIT_HOME"`.
        value: The value itself; shown by its `repr`, shortened. Not kept.
        expected: What would have been right.
        hint: What to do, if that is more than passing what was expected.
    """

    argument: str
    expected: str

    def __init__(self, argument: str, value: object, expected: str, *, hint: str = "") -> None:
        self.argument, self.expected = argument, expected
        shown = clip(repr(value) if isinstance(value, str) else value)
        super().__init__(f"{argument}: expected {expected}, got {shown}{hint and '; '}{hint}")


class MissingDependencyError(MlkitError, ImportError):
    """An optional package is not installed.

    Args:
        feature: What needs it.
        module: The module that is missing.
        extra: The extra that brings it.
    """

    feature: str
    module: str
    extra: str

    def __init__(self, *, feature: str, module: str, extra: str) -> None:
        self.feature, self.module, self.extra = feature, module, extra
        super().__init__(
            f"{feature} needs {module!r}, which is not installed\n"
            f"  install it with:  pip install 'mlkit-blocks[{extra}]'"
        )
        ImportError.__init__(self, *self.args, name=module.partition(".")[0])

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, args, state = super().__reduce__()
        return rebuild, args, {**state, "name": self.name}  # `name` lives in ImportError's own slot


class DigestError(MlkitError, TypeError):
    """A value has no canonical encoding, so that it has no digest.

    Args:
        path: Where in the value, e.g. `"$.layers[3]"`.
        reason: What is there, and what to pass instead.
    """

    path: str

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"cannot digest {clip(path, 200)}: {reason}")


# --- registry
# ----------------------------------------------------------------------------------------------------


class RegistryError(MlkitError):
    """Base of the errors of `mlkit.registry`."""


class UnknownNameError(RegistryError, KeyError):
    """Nothing is registered under a name.

    Args:
        registry: Name of the registry.
        name: What was asked for.
        known: What is registered.
        hint: What else may help where no name is near, e.g. to import what registers it.
        defined_at: The file and line that would register it, `"mypkg/heads.py:41"`, if it was found in one that was
            not imported; *hint* then says what to do.
    """

    registry: str
    name: str
    suggestions: tuple[str, ...]
    defined_at: str

    def __init__(
        self,
        registry: str,
        name: str,
        known: Iterable[str],
        *,
        hint: str = "",
        defined_at: str = "",
    ) -> None:
        known = list(known)
        self.registry, self.name, self.defined_at = registry, name, defined_at
        self.suggestions = tuple(closest(name, known))
        near = meant(self.suggestions)
        if defined_at:
            near = f": defined at {clip(defined_at, 120)} but never imported: {hint}"
        if not near:
            near = f"; {registry!r} has {listing(known)}{hint and ' '}{hint}"
        super().__init__(f"unknown name {clip(name, 60)!r} in registry {registry!r}{near}")


class DuplicateNameError(RegistryError, ValueError):
    """Two owners register one name.

    Args:
        registry: Name of the registry.
        name: The name and version, `name@N`.
        first: Where it was registered first, `module:line`.
        second: Where it was registered again.
        fix: What to do about it.
    """

    registry: str
    name: str
    first: str
    second: str

    def __init__(
        self,
        registry: str,
        name: str,
        *,
        first: str,
        second: str,
        fix: str = "choose another name or version, or pass replace=True",
    ) -> None:
        self.registry, self.name, self.first, self.second = registry, name, first, second
        super().__init__(
            f"{name!r} is already registered in {registry!r} by {first}; {second} registers it again: {fix}"
        )


class EntryError(RegistryError, ImportError):
    """A registered entry cannot be imported, or what it imports is not what the registry holds.

    Args:
        registry: Name of the registry.
        name: The entry.
        target: Where it should be, `module:attribute`.
        reason: What went wrong, and what to do.
    """

    registry: str
    entry: str
    target: str

    def __init__(self, registry: str, name: str, *, target: str, reason: str) -> None:
        self.registry, self.entry, self.target = registry, name, target
        super().__init__(f"{name!r} of registry {registry!r} ({target}): {reason}")


class RegistryFrozenError(RegistryError, RuntimeError):
    """Something is registered in a registry that was frozen.

    Args:
        registry: Name of the registry.
        name: What would have been registered.
    """

    registry: str
    name: str

    def __init__(self, registry: str, name: str) -> None:
        self.registry, self.name = registry, name
        super().__init__(
            f"registry {registry!r} is frozen, so {clip(name, 60)!r} cannot be registered: import the module that "
            f"registers it before freeze() is called, or put it in place for a while with override(...)"
        )


class SpecProblem:
    """One thing wrong with a spec.

    Args:
        path: Where, as a dotted path, e.g. `"model.encoder.width"`; empty for the root.
        kind: What kind of problem: `"type"`, `"unknown_name"`, `"unknown_argument"`,
            `"missing_argument"`, `"value"`, `"entry"` (what it names cannot be used), `"syntax"`,
            `"file"` (it cannot be read).
        message: What is wrong with which value.
        suggestions: Names that were perhaps meant, best first.
        source: File, line and column, `"train.yaml:14:9"`, if the spec was read from a file.
    """

    __slots__ = ("kind", "message", "path", "source", "suggestions")
    path: str
    kind: str
    message: str
    suggestions: tuple[str, ...]
    source: str | None

    def __init__(
        self,
        path: str,
        kind: str,
        message: str,
        *,
        suggestions: Sequence[str] = (),
        source: str | None = None,
    ) -> None:
        self.path, self.kind, self.message = path, kind, message
        self.suggestions, self.source = tuple(suggestions), source

    def __str__(self) -> str:
        where = " ".join(part for part in (self.source, self.path) if part)
        return f"{where}: {self.message}" if where else self.message

    def __repr__(self) -> str:
        return f"SpecProblem({str(self)!r})"


class SpecError(RegistryError, ValueError):
    """A spec does not fit what it wants to build.

    Args:
        problems: All that is wrong, in the order of the spec.
    """

    problems: tuple[SpecProblem, ...]

    def __init__(self, problems: Iterable[SpecProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__(_lines("problem", self.problems))


class NoCandidateError(RegistryError, LookupError):
    """No registered strategy accepts a context.

    Args:
        registry: Name of the registry.
        rejected: Why each candidate declined, by name.
    """

    registry: str
    rejected: Mapping[str, str]

    def __init__(self, registry: str, rejected: Mapping[str, str]) -> None:
        self.registry, self.rejected = registry, dict(rejected)
        reasons = [f"{name}: {reason}" for name, reason in self.rejected.items()] or [
            "nothing is registered"
        ]
        super().__init__(f"no entry of {registry!r} accepts this context\n" + _bullets(reasons))


# --- repro
# -------------------------------------------------------------------------------------------------------


class ReproError(MlkitError):
    """Base of the errors of `mlkit.repro`."""


class FingerprintError(ReproError, TypeError):
    """Something whose content cannot be hashed faithfully.

    Args:
        path: Where in the value or in the file system.
        reason: What is there, and what to pass instead.
    """

    path: str

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"cannot fingerprint {clip(path, 200)}: {reason}")


class RngStateError(ReproError, ValueError):
    """A saved generator state does not fit this process."""


class ManifestError(ReproError, ValueError):
    """A manifest cannot be read or captured."""


class TraceError(ReproError, ValueError):
    """The file of a recorded trace cannot be read."""


# --- inference
# ---------------------------------------------------------------------------------------------------


class InferenceError(MlkitError):
    """Base of the errors of `mlkit.inference`."""


class CollateError(InferenceError, ValueError):
    """A row cannot be put into one batch with the others.

    Args:
        reason: What differs, with both sides.
        index: The row, counted from 0 in its batch, if it is one row's fault.
    """

    index: int | None

    def __init__(self, reason: str, *, index: int | None = None) -> None:
        self.index = index
        super().__init__(reason if index is None else f"row {index}: {reason}")


class OutputShapeError(InferenceError, ValueError):
    """The model did not return one output per row.

    Args:
        function: Name of the model function.
        expected: Rows that went in.
        got: What came out: a number of rows, or a description.
    """

    expected: int

    def __init__(self, function: str, *, expected: int, got: int | str) -> None:
        self.expected = expected
        came = _rows(got) if isinstance(got, int) else got
        super().__init__(
            f"{function} was given a batch of {_rows(expected)} and returned {came}; it must return one output per row, "
            f"in the same order"
        )


def _rows(n: int) -> str:
    return f"{n} row{'s' * (n != 1)}"


class RowError(InferenceError, ValueError):
    """One row breaks the model. The model's own error is the `__cause__`.

    Args:
        index: The row's place in the input, counted from 0.
        error: What the model raised.
        partition: The part of a dataset that *index* counts in, from 0, if the rows before that part are not known.
    """

    index: int
    error_type: str
    partition: int | None
    __cause__: BaseException | None

    def __init__(self, index: int, error: BaseException, *, partition: int | None = None) -> None:
        self.index, self.error_type, self.partition = index, type(error).__name__, partition
        part = "" if partition is None else f" of partition {partition}"
        try:
            text = str(error)
        except Exception:  # noqa: BLE001 - the row is bad whether its error can be shown or not
            text = "(its text cannot be shown)"
        super().__init__(f"row {index}{part}: {self.error_type}: {clip(text, 400)}")
        self.__cause__ = error


class CheckpointError(InferenceError, ValueError):
    """A checkpoint of `map_batches` is of another job, in use, or cannot hold the results.

    Args:
        path: The file.
        reason: What is wrong with it, and what to do.
    """

    path: str

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"checkpoint {clip(path, 100)} {reason}")


class EngineError(InferenceError, RuntimeError):
    """An engine could not run the work it was given: its cluster is not there, or a worker could not do it.

    Args:
        engine: The engine: `"dask"`.
        reason: What happened, and what to do.
    """

    engine: str
    reason: str

    def __init__(self, engine: str, reason: str) -> None:
        self.engine, self.reason = engine, clip(reason, 500)
        super().__init__(f"engine {engine}: {reason}")


class OverloadedError(InferenceError, RuntimeError):
    """A row was rejected on arrival, because it could not be run in time.

    Args:
        name: The batcher.
        reason: Why.
        retry_after: Seconds until what waits now will have run, by the batches so far; None if none has run yet.
    """

    name: str
    reason: str
    retry_after: float | None

    def __init__(self, name: str, reason: str, *, retry_after: float | None = None) -> None:
        self.name, self.reason, self.retry_after = name, reason, retry_after

    def __str__(self) -> str:
        again = "" if self.retry_after is None else f"; try again in {self.retry_after:.3g} s"
        return f"Batcher {clip(self.name, 100)!r}: {clip(self.reason, 300)}{again}"


class QueueFullError(OverloadedError):
    """A row was rejected on arrival, because too many wait already.

    Args:
        max_queue: The bound of the queue, in rows.
        name: The batcher.
        retry_after: As for `OverloadedError`.
    """

    max_queue: int

    def __init__(self, max_queue: int, *, name: str = "", retry_after: float | None = None) -> None:
        self.max_queue = max_queue
        reason = f"the queue holds its maximum of {max_queue} rows"
        super().__init__(name, reason, retry_after=retry_after)

    def __str__(self) -> str:
        return f"{super().__str__()}; shed load upstream, or raise max_queue if the callers can wait that long"


class BatcherClosedError(InferenceError, RuntimeError):
    """The batcher is closed, or was never started, so that it takes no rows."""


# --- resilience
# --------------------------------------------------------------------------------------------------


class DeadlineExceededError(MlkitError, TimeoutError):
    """The time allowed for a piece of work ran out.

    Args:
        what: What was being done.
        seconds: The time it was allowed, in seconds.
    """

    seconds: float

    def __init__(self, what: str, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"{what} did not finish within {seconds:g} s")


class RejectedError(MlkitError, RuntimeError):
    """A policy refused to make the call; the function was not run.

    Args:
        name: The policy or breaker that refused.
        reason: Why.
        retry_after: Seconds until a call may be admitted, or None if unknown.
    """

    name: str
    reason: str
    retry_after: float | None

    def __init__(self, name: str, reason: str, *, retry_after: float | None = None) -> None:
        # Without the message, which nobody may read: rejecting has to be cheap.
        self.name, self.reason = name, reason
        self.retry_after = None if retry_after == _inf else retry_after

    def __str__(self) -> str:
        again = "" if self.retry_after is None else f"; try again in {self.retry_after:.3g} s"
        return clip(f"{self.name}: {self.reason}{again}", _MAX_MESSAGE)


class BreakerOpenError(RejectedError):
    """The circuit breaker is open."""


class BulkheadFullError(RejectedError):
    """Too many calls are in flight."""


class RateLimitedError(RejectedError):
    """Too many calls were made in the last period."""


class ResultRejectedError(MlkitError, ValueError):
    """A call returned, and a gate did not accept its answer.

    Args:
        gate: The gate, as it is written.
        tier: The tier or function that gave the answer.

    Attributes:
        verdict: What the policy said is to be done about the answer, or None if it only refused it.
    """

    gate: str
    tier: str
    verdict: object | None

    def __init__(self, gate: str, tier: str) -> None:
        self.gate, self.tier = gate, tier
        self.verdict = None
        super().__init__(f"the answer of {tier} did not pass {clip(gate, 200)}")


class RowsMismatchError(MlkitError, ValueError):
    """The rows of a tier's answer do not fit among those of the tiers above.

    Args:
        tier: The tier that gave them.
        place: Where in its answer: `"answer['probs']"`.
        reason: What does not fit.
    """

    tier: str
    place: str

    def __init__(self, tier: str, place: str, reason: str) -> None:
        self.tier, self.place = tier, place
        super().__init__(f"tier {clip(tier, 60)!r}: {clip(place, 120)}: {clip(reason, 300)}")


class AllTiersFailedError(MlkitError, ExceptionGroup[Exception]):
    """Every tier of a fallback failed; `exceptions` holds their errors, in the order of the tiers.

    Args:
        message: Which fallback.
        exceptions: One error per tier.
        tiers: The tier of each error, in the same order; empty if that is not known.
        rows: The rows that have no answer, where each row of a batch can have its own.
    """

    tiers: tuple[str, ...]
    rows: tuple[int, ...]

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[Exception],
        *,
        tiers: Sequence[str] = (),  # noqa: ARG004 - for __init__, which Python gives the same arguments
        rows: Sequence[int] = (),  # noqa: ARG004
    ) -> Self:
        """Create the group; an exception group takes its members here."""
        return super().__new__(cls, message, exceptions)

    def __init__(
        self,
        message: str,
        exceptions: Sequence[Exception],
        *,
        tiers: Sequence[str] = (),
        rows: Sequence[int] = (),
    ) -> None:
        self.tiers, self.rows = tuple(tiers), tuple(rows)
        named = [f"{clip(tier, 60)}: " if tier else "" for tier in self.tiers]
        named += [""] * (len(exceptions) - len(named))
        self._text = f"{message}\n" + _bullets(
            [
                f"{name}{type(error).__name__}: {said(error)}"
                for name, error in zip(named, exceptions, strict=False)
            ]
        )

    def __str__(self) -> str:
        return clip(self._text, _MAX_MESSAGE)

    def derive(self, excs: Sequence[Exception]) -> AllTiersFailedError:  # type: ignore[override]
        """Return a group of the same kind around *excs* (used by `split` and `except*`)."""
        named = {id(error): tier for error, tier in zip(self.exceptions, self.tiers, strict=False)}
        tiers = [named.get(id(error), "") for error in excs] if named else []
        return AllTiersFailedError(self.message, excs, tiers=tiers, rows=self.rows)


# --- flags
# -------------------------------------------------------------------------------------------------------


class FlagError(MlkitError):
    """Base of the errors of `mlkit.flags`. Reading a flag never raises; loading and declaring may."""


class FlagFileError(FlagError, ValueError):
    """A flag file cannot be used at all; single bad flags are quarantined instead.

    Args:
        source: Where the flags come from.
        reason: What is wrong, with its place.
    """

    source: str

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        super().__init__(f"{clip(source, 200)}: {reason}")


class FlagTypeError(FlagError, TypeError):
    """A handle asks for another type than the flag's variants have.

    Args:
        key: The flag.
        expected: The type of the handle.
        got: What the definition has.
    """

    key: str

    def __init__(self, key: str, *, expected: str, got: str) -> None:
        self.key = key
        super().__init__(f"flag {key!r} was declared as {expected}, but its definition has {got}")


# --- tracking
# ----------------------------------------------------------------------------------------------------


class TrackingError(MlkitError):
    """Base of the errors of `mlkit.tracking`. An outage never raises; a wrong call does."""


class ParamConflictError(TrackingError, ValueError):
    """A param was logged before with another value; params describe the run and do not change.

    Args:
        key: The param.
        old: Its value.
        new: The value that was refused.
    """

    key: str

    def __init__(self, key: str, old: object, new: object) -> None:
        self.key = key
        super().__init__(
            f"param {clip(key, 80)!r} is {clip(old)} and cannot become {clip(new)}; "
            f"use a metric or a tag for what changes"
        )


class RunClosedError(TrackingError, RuntimeError):
    """The run has ended.

    Args:
        run_id: The run.
    """

    run_id: str

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id} is closed; resume it with start_run(..., resume={run_id!r})"
        )


class RunNotFoundError(TrackingError, LookupError):
    """There is no run journal at that place.

    Args:
        where: The folder or run id.
        known: Run ids that are there.
    """

    where: str

    def __init__(self, where: str, known: Iterable[str] = ()) -> None:
        known = list(known)
        self.where = where
        near = did_you_mean(where, known) or (f"; there are {listing(known)}" if known else "")
        super().__init__(f"no run at {clip(where, 200)!r}{near}")


class JournalError(TrackingError, ValueError):
    """A journal cannot be read or written.

    Args:
        path: The file.
        reason: What is wrong.
    """

    path: str

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"{clip(path, 200)}: {reason}")


class SinkUnavailableError(TrackingError, ConnectionError):
    """A backend cannot take records now; the same batch is sent again later.

    Args:
        message: Why.
        retry_after: Seconds for which the backend asks to be left alone, as far as it does.
    """

    retry_after: float

    def __init__(self, message: str = "", *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SinkRejectedError(TrackingError, ValueError):
    """A backend will never take a batch as it is; the batch is split and the culprit set aside."""


# --- models
# ------------------------------------------------------------------------------------------------------


class ModelStoreError(MlkitError):
    """Base of the errors of `mlkit.models`."""


class VersionNotFoundError(ModelStoreError, LookupError):
    """There is no such model, version or alias.

    Args:
        ref: What was asked for, `"churn@7"`.
        known: The nearest kind of name that exists: models, or versions and aliases of the model.
        hint: What else there is to say.
        before: The version that holds the alias *ref*, if it was its holder before this one that was asked for.
    """

    ref: str

    def __init__(
        self, ref: str, known: Iterable[str] = (), *, hint: str = "", before: int | None = None
    ) -> None:
        known = list(known)
        self.ref = ref
        if before is not None:
            super().__init__(
                f"{clip(ref, 120)} cannot be rolled back: no version that still exists held it before version "
                f"{before}; promote the version that it should point at"
            )
            return
        near = did_you_mean(ref, known)
        if not near and (known or not hint):
            near = f"; the store has {listing(known)}"
        super().__init__(f"no model version {clip(ref, 120)!r}{hint and '; '}{hint}{near}")


class IntegrityError(ModelStoreError, ValueError):
    """Stored bytes are not the bytes that were saved.

    Args:
        path: The file.
        expected: The digest that was recorded.
        got: The digest of what is there now, or what is wrong with it.
    """

    path: str
    expected: str
    got: str

    def __init__(self, path: str, *, expected: str, got: str) -> None:
        self.path, self.expected, self.got = path, expected, got
        super().__init__(
            f"{clip(path, 200)} was changed after it was saved: expected {expected}, found {got}; restore it from a "
            f"backup or another store, or promote another version"
        )


class AliasConflictError(ModelStoreError, RuntimeError):
    """An alias moved between being read and being set.

    Args:
        alias: The alias, `"churn@champion"`.
        expected: The version the caller expected it to hold, None for "unset".
        got: The version it holds.
    """

    alias: str
    expected: int | None
    got: int | None

    def __init__(self, alias: str, *, expected: int | None, got: int | None) -> None:
        self.alias, self.expected, self.got = alias, expected, got
        super().__init__(
            f"{alias} points at {'nothing' if got is None else f'version {got}'}, not at "
            f"{'nothing' if expected is None else f'version {expected}'} as expected; read it again and decide anew"
        )


class ChecksFailedError(ModelStoreError, RuntimeError):
    """A check refused a promotion.

    Args:
        ref: The version, `"churn@7"`.
        failures: What each failing check said, by name.
    """

    ref: str
    failures: Mapping[str, str]

    def __init__(self, ref: str, failures: Mapping[str, str]) -> None:
        self.ref, self.failures = ref, dict(failures)
        said = [f"{name}: {reason}" for name, reason in self.failures.items()]
        super().__init__(f"{ref} was not promoted\n" + _bullets(said))


class VersionInUseError(ModelStoreError, ValueError):
    """A version that an alias points at cannot be deleted.

    Args:
        ref: The version.
        aliases: The aliases that hold it.
    """

    ref: str
    aliases: tuple[str, ...]

    def __init__(self, ref: str, aliases: Iterable[str]) -> None:
        self.ref, self.aliases = ref, tuple(aliases)
        super().__init__(f"{ref} is in use as {listing(self.aliases)}; move the alias first")


class NumberTakenError(ModelStoreError, ValueError):
    """An imported version cannot have the number it had: the store has given it to something else.

    Args:
        ref: The version as it is called where it comes from, `"churn@7"`.
        last: The highest number that the store has given.
    """

    ref: str
    last: int

    def __init__(self, ref: str, *, last: int) -> None:
        self.ref, self.last = ref, last
        super().__init__(
            f"{clip(ref, 120)} cannot be imported under its number: the store has given every number up to {last}, and "
            f"what they are is something else; pass renumber=True for the next free one (signatures are of the old one)"
        )


class SignatureError(ModelStoreError, ValueError):
    """A version is not signed by whom it must be.

    Args:
        ref: The version.
        required: Fingerprints of the keys, one of which must have signed it.
        found: Fingerprints that the signatures kept with it name, whether or not they hold.
    """

    ref: str
    required: tuple[str, ...]
    found: tuple[str, ...]

    def __init__(self, ref: str, *, required: Iterable[str], found: Iterable[str] = ()) -> None:
        self.ref, self.required, self.found = ref, tuple(required), tuple(found)
        needed = listing([key[:12] for key in self.required])
        there = listing([key[:12] for key in self.found]) if self.found else "none"
        if set(self.found) & set(self.required):
            there += ", which is not of what is stored under this name and number"
        super().__init__(
            f"{clip(ref, 120)} is not signed as required: it needs a signature by {needed}, it has {there}; have it "
            f"signed, or use a version that is"
        )


class SealError(ModelStoreError, LookupError):
    """A sealed file cannot be opened with the keys that the store was given.

    Args:
        path: The file.
        key_id: The name of the key that it was sealed with.
        reason: What is wrong.
    """

    path: str
    key_id: str

    def __init__(self, path: str, *, key_id: str, reason: str) -> None:
        self.path, self.key_id = path, key_id
        super().__init__(
            f"{clip(path, 200)} is sealed with the key {clip(key_id, 80)!r}: {clip(reason, 200)}"
        )


class StoreLockedError(ModelStoreError, TimeoutError):
    """Another writer held a store for longer than this one was willing to wait.

    Args:
        path: The lock file.
        timeout: How long it waited, in seconds.
        holder: Who holds it, if that is known.
    """

    path: str
    timeout: float
    holder: str

    def __init__(self, path: str, *, timeout: float, holder: str = "") -> None:
        self.path, self.timeout, self.holder = path, timeout, holder
        super().__init__(
            f"{clip(path, 200)} was held by {clip(holder, 120) or 'another writer'} for more than {timeout:g} s; if "
            f"that process hangs, end it, and its lock is gone with it"
        )


class StoreUnavailableError(ModelStoreError, ConnectionError):
    """A store on a server does not answer, or answers that it cannot now.

    Args:
        uri: The server.
        reason: What it said.
    """

    uri: str

    def __init__(self, uri: str, reason: str) -> None:
        self.uri = uri
        super().__init__(
            f"{clip(uri, 120)} cannot be asked now: {reason}; try again when it answers"
        )


class RebuildError(ModelStoreError, ValueError):
    """What a spec builds does not take the stored weights.

    Args:
        ref: The version.
        reason: What does not fit.
    """

    ref: str

    def __init__(self, ref: str, reason: str) -> None:
        self.ref = ref
        super().__init__(
            f"{ref} cannot be rebuilt: {reason}; build it with the code that its manifest names, or save it again"
        )


class ModelInputError(ModelStoreError, ValueError):
    """What a model is given, or gave, is not what its signature says.

    Args:
        what: Whose signature it is, or which part.
        problems: Each begins with the place: `"column 'age': ..."`.
    """

    problems: tuple[str, ...]

    def __init__(self, what: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        shown = [clip(problem, 150) for problem in self.problems[:3]]
        more = len(self.problems) - len(shown)
        lines = [f"{clip(what, 80)} does not fit the signature", *(f"  - {line}" for line in shown)]
        super().__init__("\n".join(lines) + (f"\n  and {more} more" if more else ""))


class UnknownFormatError(ModelStoreError, LookupError):
    """A version is stored in a format that the store has no codec for.

    Args:
        ref: The version.
        format: The name of the format.
        known: The formats that the store has.
    """

    ref: str
    format: str

    def __init__(self, ref: str, format: str, known: Iterable[str]) -> None:  # noqa: A002 - its name
        self.ref, self.format = ref, format
        super().__init__(
            f"{clip(ref, 120)} is stored in the format {format!r}, and this store knows {listing(known)}"
            f"{did_you_mean(format, known)}; pass the codec of that name: ModelStore(path, codecs=[...]), or upgrade "
            f"mlkit-blocks if it is one of a newer version"
        )


class UntrustedFormatError(ModelStoreError, ValueError):
    """Loading this could run code from the file, and nobody has decided that it may.

    Args:
        what: The object or file.
        hint: What to do instead.
        reason: Why it could.
        types: Names of the types that would have to be trusted, if it is about types.
    """

    types: tuple[str, ...]

    def __init__(
        self,
        what: str,
        hint: str,
        *,
        reason: str = "would need pickle, which runs whatever code the file holds",
        types: Iterable[str] = (),
    ) -> None:
        self.types = tuple(types)
        super().__init__(f"{clip(what, 120)} {reason}; {hint}")


# --- warnings
# ----------------------------------------------------------------------------------------------------


class MlkitWarning(UserWarning):
    """Base of every warning of mlkit."""


class NondeterminismWarning(MlkitWarning):
    """Something in this process can change results between runs."""


class DegradedWarning(MlkitWarning):
    """The work goes on, but a listener or watcher beside it failed, or it seems broken itself."""


class TrackingWarning(MlkitWarning):
    """A run was left open, or records could not be delivered."""


def _lines(noun: str, items: Sequence[object]) -> str:
    if len(items) == 1:
        return str(items[0])
    return f"{len(items)} {noun}s\n" + _bullets([str(item) for item in items])


def _bullets(items: Sequence[str]) -> str:
    """Return as many of *items* as one message has room for, one a line."""
    shown: list[str] = []
    room = 520
    for item in items:
        line = f"  - {clip(item, 160)}"
        room -= len(line) + 1
        if room < 0:
            break
        shown.append(line)
    if len(items) > len(shown):
        shown.append(f"  - and {len(items) - len(shown)} more")
    return "\n".join(shown)
