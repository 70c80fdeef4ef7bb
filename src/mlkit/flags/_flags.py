"""`Flags`: the set of flags that a process reads, and how it is replaced."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar, final, overload

from mlkit._arguments import seconds, whole
from mlkit.errors import ConfigurationError
from mlkit.flags._document import (
    MAX_BYTES,
    Change,
    Problem,
    Snapshot,
    encode_document,
    static_document,
)
from mlkit.flags._flag import Flag
from mlkit.flags._handle import check_bounds, handle
from mlkit.flags._kinds import BoolKind, EnumKind, JsonKind, ModelKind, NumberKind, StrKind
from mlkit.flags._scope import overridden, pinned
from mlkit.flags._source import File
from mlkit.flags._store import Store

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from enum import Enum
    from types import TracebackType

    from mlkit.flags._explain import Explanation
    from mlkit.flags._exposures import Exposures
    from mlkit.flags._model import ModelFlag

__all__ = ["Flags"]

E = TypeVar("E", bound="Enum")
T = TypeVar("T")


@final
class Flags:
    """A set of feature flags, read from a flagd file or from data.

    Readers take the present snapshot by one reference and never lock; a reload makes a new one and swaps it in, so a
    reader sees all of a reload or nothing of it. A flag that cannot be read is set aside with its last good definition
    in force, and listed in `problems`; a file that cannot be read changes nothing.

    Thread-safe and fork-safe: a watching object watches in the child too. It pickles as its source: the receiver reads
    the file, or has the same data; overrides and rollouts stay behind.

    Made by `from_file`, `from_dict` and `in_memory`. `close()` ends watching; reading goes on.

    Examples:
        >>> flags = Flags.from_dict({"flags": {"new-tokeniser": {
        ...     "state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off",
        ...     "targeting": {"if": [{"==": [{"var": "plan"}, "pro"]}, "on"]},
        ... }}})
        >>> NEW_TOKENISER = flags.bool("new-tokeniser", default=False)
        >>> NEW_TOKENISER("user-7", plan="pro"), NEW_TOKENISER("user-7", plan="free")
        (True, False)
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- sources -------------------------------------------------------------------------------------------------

    @classmethod
    def from_file(
        cls,
        path: builtins.str | os.PathLike[builtins.str],
        *,
        watch: builtins.bool = False,
        interval: builtins.float = 0.5,
    ) -> Flags:
        """Read a flagd `flags.json`.

        Args:
            path: The file. It may be replaced, also through symbolic links; see `reload`.
            watch: Whether a daemon thread looks for changes.
            interval: Seconds between its looks, above 0. A look that finds nothing costs one `stat`.

        Raises:
            FlagFileError: If the file cannot be read or used as a whole.
            ConfigurationError: If an argument is wrong.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise ConfigurationError("Flags.from_file(path)", path, "a path")
        pause = seconds("Flags.from_file(interval=...)", interval)
        return cls(Store.open(File(path, MAX_BYTES), pause if watch else None))

    @classmethod
    def from_url(
        cls,
        url: builtins.str,
        *,
        watch: builtins.bool = False,
        interval: builtins.float = 30.0,
        keep: builtins.str | os.PathLike[builtins.str] | None = None,
        headers: Mapping[builtins.str, builtins.str]
        | Callable[[], Mapping[builtins.str, builtins.str]]
        | None = None,
        timeout: builtins.float = 10.0,
        attempts: builtins.int = 3,
        max_bytes: builtins.int = MAX_BYTES,
        insecure: builtins.bool = False,
    ) -> Flags:
        """Get a flagd document by HTTP.

        A document that did not change is not sent again (`ETag`, `Last-Modified`). Trouble that may pass (no connection,
        no whole answer in time, 408, 425, 429, 5xx) is tried again with growing pauses, or after the pause that the
        server asks for (`Retry-After`). Redirects are followed, but never from https to http. User and password of the
        URL are sent as basic authentication; they, its query and the headers stand in no message. No evaluation waits
        for the server.

        Args:
            url: `https://...`; `http://...` for a server on this machine.
            watch: Whether a daemon thread looks for changes.
            interval: Seconds between its looks, above 0, give or take a fifth at random.
            keep: A file that the last good document is written to. If the server gives none at the start, the document
                in the file is used; `problems` then says so, and `age` how old it is.
            headers: Headers to send, such as `Authorization`, or a function that returns them and is called for each
                look. Told to the URL's own server alone, not where a redirect leads.
            timeout: Seconds that one look may take, with its attempts and pauses.
            attempts: How often a look asks at most, at least 1.
            max_bytes: A longer document is refused, packed or not.
            insecure: Whether to take plain http from another machine.

        Raises:
            FlagFileError: If there is no document that can be used, from the server or kept.
            ConfigurationError: If an argument is wrong.
        """
        from mlkit.flags._kept import Kept
        from mlkit.flags._url import Url

        pause = seconds("Flags.from_url(interval=...)", interval)
        origin = Url(
            url,
            headers,
            timeout=seconds("Flags.from_url(timeout=...)", timeout),
            attempts=whole("Flags.from_url(attempts=...)", attempts, low=1),
            max_bytes=whole("Flags.from_url(max_bytes=...)", max_bytes, low=1, high=MAX_BYTES),
            insecure=insecure,
        )
        if keep is not None and not isinstance(keep, (str, os.PathLike)):
            raise ConfigurationError("Flags.from_url(keep=...)", keep, "a path or None")
        kept = None if keep is None else Kept(keep, origin.identity)
        return cls(Store.open(origin, pause if watch else None, kept))

    @classmethod
    def from_dict(cls, document: Mapping[builtins.str, Any]) -> Flags:
        """Use a flagd document given as Python data.

        Args:
            document: `{"flags": {...}}`, as the file would say it; it is copied.

        Raises:
            FlagFileError: If it cannot be used as a whole.
        """
        if not _is_mapping(document):
            raise ConfigurationError(
                "Flags.from_dict(document)", document, "a mapping with 'flags'"
            )
        source = "Flags.from_dict(document)"
        return cls(Store(encode_document(document, source), source))

    @classmethod
    def in_memory(cls, values: Mapping[builtins.str, Any] | None = None) -> Flags:
        """Use flags that have one fixed value each: for tests, and to start with.

        Args:
            values: The value of each flag.

        Raises:
            FlagFileError: If a value is not JSON.
        """
        values = {} if values is None else values
        if not _is_mapping(values):
            raise ConfigurationError(
                "Flags.in_memory(values)", values, "a mapping of flag keys to values"
            )
        source = "Flags.in_memory(values)"
        return cls(Store(encode_document(static_document(values), source), source))

    # --- handles -------------------------------------------------------------------------------------------------

    def bool(self, key: builtins.str, *, default: builtins.bool) -> Flag[builtins.bool]:
        """Return a handle that is true or false.

        Args:
            key: The flag; it need not exist yet.
            default: What to give on any trouble.

        Raises:
            FlagTypeError: If the flag exists and its variants are of another type.
            ConfigurationError: If an argument is wrong.
        """
        return handle(self._store, Flag, key, default, BoolKind())

    def int(
        self,
        key: builtins.str,
        *,
        default: builtins.int,
        ge: builtins.int | None = None,
        le: builtins.int | None = None,
    ) -> Flag[builtins.int]:
        """Return a handle that is a whole number.

        Args:
            key: The flag.
            default: What to give on any trouble.
            ge: A lesser value is trouble.
            le: A greater value is trouble.

        Raises:
            FlagTypeError: As for `bool`.
            ConfigurationError: If an argument is wrong, or *default* is out of bounds.
        """
        check_bounds("int", ge, le)
        return handle(self._store, Flag, key, default, NumberKind(int, ge, le))

    def float(
        self,
        key: builtins.str,
        *,
        default: builtins.float,
        ge: builtins.float | None = None,
        le: builtins.float | None = None,
    ) -> Flag[builtins.float]:
        """Return a handle that is a finite number.

        Args:
            key: The flag.
            default: What to give on any trouble.
            ge: A lesser value is trouble.
            le: A greater value is trouble.

        Raises:
            FlagTypeError: As for `bool`.
            ConfigurationError: If an argument is wrong, or *default* is out of bounds.
        """
        check_bounds("float", ge, le)
        return handle(self._store, Flag, key, default, NumberKind(float, ge, le))

    def str(self, key: builtins.str, *, default: builtins.str) -> Flag[builtins.str]:
        """Return a handle that is text.

        Args:
            key: The flag.
            default: What to give on any trouble.

        Raises:
            FlagTypeError: As for `bool`.
            ConfigurationError: If an argument is wrong.
        """
        return handle(self._store, Flag, key, default, StrKind())

    @overload
    def json(self, key: builtins.str, *, default: Any, schema: None = None) -> Flag[Any]: ...

    @overload
    def json(self, key: builtins.str, *, default: T, schema: type[T]) -> Flag[T]: ...

    def json(
        self, key: builtins.str, *, default: Any, schema: type[Any] | None = None
    ) -> Flag[Any]:
        """Return a handle that is an object or a list: read-only mappings and tuples, or an object of your own type.

        With a *schema*, variants are validated by pydantic, as JSON. One that does not fit is trouble: `problems` names
        the place in it. Whoever asks gets an object of their own, so that changing it changes nobody's answer; one that
        is frozen and hashable is not copied.

        Args:
            key: The flag.
            default: What to give on any trouble: a mapping, list or tuple, of which a read-only copy is kept; with a
                schema, an object of it.
            schema: A model of pydantic, a dataclass or a `TypedDict`.

        Raises:
            FlagTypeError: As for `bool`.
            ConfigurationError: If an argument is wrong.

        Examples:
            >>> from pydantic import BaseModel
            >>> class Search(BaseModel, frozen=True):
            ...     top_k: int = 10
            ...     rerank: bool = False
            >>> flags = Flags.in_memory({"search": {"top_k": 50}})
            >>> flags.json("search", default=Search(), schema=Search)("user-7")
            Search(top_k=50, rerank=False)
        """
        if schema is None:
            return handle(self._store, Flag, key, default, JsonKind())
        from mlkit.flags._schema import SchemaFlag, SchemaKind

        return handle(self._store, SchemaFlag, key, default, SchemaKind(schema))

    def enum(self, key: builtins.str, *, default: E) -> Flag[E]:
        """Return a handle that is a member of an enum, found by the member's value.

        Args:
            key: The flag.
            default: What to give on any trouble; its class is the enum.

        Raises:
            FlagTypeError: As for `bool`.
            ConfigurationError: If an argument is wrong.
        """
        from enum import Enum

        if not isinstance(default, Enum):
            raise ConfigurationError("Flags.enum(default=...)", default, "a member of an enum")
        return handle(self._store, Flag, key, default, EnumKind(type(default)))

    def model(self, key: builtins.str, *, default: builtins.str) -> ModelFlag:
        """Return a handle that is the URI of a model version.

        A variant's URI is the flag's metadata `model.<variant>`, or else the variant's value.

        Args:
            key: The flag.
            default: The variant to give on any trouble; if the flag has no such variant, the text itself is the URI.

        Raises:
            FlagTypeError: If a variant has no URI.
            ConfigurationError: If an argument is wrong.
        """
        from mlkit.flags._model import ModelFlag

        return handle(self._store, ModelFlag, key, default, ModelKind())

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> builtins.str:
        """Digest of the flags in force: equal digests mean equal decisions, in any process."""
        return self._store.current.digest

    @property
    def age(self) -> builtins.float:
        """Seconds since the flags were last known to equal their source; it grows if watching fails."""
        return self._store.age

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the source now, and what stays in force for it; variants that a handle cannot take, too."""
        store = self._store
        if not store.declared:
            return store.problems
        from mlkit.flags._misfits import misfits

        return (*store.problems, *misfits(store))

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Return a context manager: this context sees one snapshot, whatever is reloaded meanwhile.

        Other tasks and threads are not concerned; tasks started inside see the same.

        Examples:
            >>> flags = Flags.in_memory({"ranker": "v1"})
            >>> with flags.snapshot() as snapshot:
            ...     flags.replace({"flags": {}}) is not None
            ...     flags.str("ranker", default="none")()
            True
            'v1'
        """
        return pinned(self._store)

    def override(self, values: Mapping[builtins.str, Any]) -> AbstractContextManager[None]:
        """Return a context manager: this context sees other values, for tests.

        It nests, and wins over everything, a disabled flag too; `details` then says `"OVERRIDE"`.

        Args:
            values: For each flag the name of one of its variants, or else a value.

        Raises:
            ConfigurationError: If there is neither a flag nor a handle of that name, or a handle cannot take the value.

        Examples:
            >>> flags = Flags.in_memory({"new-tokeniser": False})
            >>> NEW_TOKENISER = flags.bool("new-tokeniser", default=False)
            >>> with flags.override({"new-tokeniser": True}):
            ...     NEW_TOKENISER("user-7")
            True
        """
        if not _is_mapping(values):
            raise ConfigurationError(
                "Flags.override(values)", values, "a mapping of flag keys to values"
            )
        return overridden(self._store, values)

    def explain(
        self,
        key: builtins.str,
        unit: builtins.str | builtins.int | None = None,
        /,
        **attributes: object,
    ) -> Explanation:
        """Return why a flag answers as it does: each rule node with its value, the hash, the bucket and the edges.

        Args:
            key: The flag.
            unit: As for a call of a handle.
            **attributes: As for a call of a handle.

        Raises:
            ConfigurationError: If there is no such flag.
        """
        from mlkit.flags._explain import explain

        return explain(self._store, key, unit, attributes)

    # --- changing ------------------------------------------------------------------------------------------------

    def reload(self) -> Change | None:
        """Read the file again and take over what changed.

        Returns:
            What changed, None if nothing did. Without a file there is nothing to read.

        Raises:
            FlagFileError: If the file cannot be used as a whole; the flags stay as they are.
        """
        return self._store.reload()

    def replace(self, document: Mapping[builtins.str, Any]) -> Change | None:
        """Take another document, given as Python data, in place of the present one.

        Args:
            document: As for `from_dict`. A file that is reloaded later replaces it again.

        Returns:
            What changed, None if nothing did.

        Raises:
            FlagFileError: If it cannot be used as a whole; the flags stay as they are.
        """
        if not _is_mapping(document):
            raise ConfigurationError("Flags.replace(document)", document, "a mapping with 'flags'")
        return self._store.replace(encode_document(document, "Flags.replace(document)"))

    def on_change(self, listener: Callable[[Change], object]) -> Callable[[], None]:
        """Call *listener* after every change, in the thread that made it.

        A listener that raises is reported as a `DegradedWarning` and disturbs nobody.

        Args:
            listener: A callable of one `Change`.

        Returns:
            A function that ends it; it may be called more than once.
        """
        if not callable(listener):
            raise ConfigurationError(
                "Flags.on_change(listener)", listener, "a callable of one Change"
            )
        return self._store.listen(listener)

    def record_exposures(
        self, *, max_units: builtins.int = 100_000, secret: builtins.bytes | None = None
    ) -> Exposures:
        """Say from now on who was given which variant: for each unit once, as the telemetry event `flags.flag.exposed`.

        Whoever records them, in tracking or elsewhere, listens with `mlkit.telemetry.listen`, from before this call on.

        Args:
            max_units: How many units, flags and variants to remember, at least 1; twice as many at most. Who was forgotten
                is said again, with the same id.
            secret: 16 to 64 bytes. With it, events have a keyed hash of the unit; see `Exposures`.

        Returns:
            What ends it: `close()`, or leaving the context. A later call takes the place of an earlier.

        Raises:
            ConfigurationError: If an argument is wrong.

        Examples:
            >>> from mlkit.telemetry import listen
            >>> flags, seen = Flags.in_memory({"ranker": "v1"}), []
            >>> RANKER = flags.str("ranker", default="none")
            >>> with listen(seen.append, scope="context"), flags.record_exposures():
            ...     RANKER("user-7"), RANKER("user-7")
            ('v1', 'v1')
            >>> [(event.kind, event.fields["variant"]) for event in seen]
            [('flags.flag.exposed', 'v1')]
        """
        from mlkit.flags._exposures import Exposures

        made = Exposures(self._store, max_units=max_units, secret=secret)
        self._store.exposures = made
        return made

    def close(self) -> None:
        """End watching. Reading goes on; it may be called more than once."""
        self._store.close()

    def __enter__(self) -> Flags:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def __repr__(self) -> builtins.str:
        return (
            f"<Flags {self._store.source!r}: {len(self._store.current)} flags, {self.digest[:19]}>"
        )


def _is_mapping(value: object) -> bool:
    from collections.abc import Mapping

    return isinstance(value, Mapping)
