"""A whole flag file: bytes in, definitions and problems out, and what changed since the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._digest import digest_bytes
from mlkit._suggest import clip, listing
from mlkit.errors import FlagFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlkit.flags._definition import Definition, Shared

__all__ = ["MAX_BYTES", "Change", "Document", "Problem", "Snapshot", "changed", "parse"]

MAX_BYTES = 16 * 2**20


class Problem(NamedTuple):
    """One thing wrong with a flag file.

    Attributes:
        flag: The flag that is set aside, None if the whole file is.
        pointer: Where in the file, as a JSON pointer: `"/flags/ranker/targeting/iff"`.
        message: What is there, and what should be.
        kept: Whether an earlier definition of the flag, or an earlier file, stays in force.
    """

    flag: str | None
    pointer: str
    message: str
    kept: bool

    def __str__(self) -> str:
        then = "the last good one stays in force" if self.kept else "callers get their default"
        return f"{self.pointer}: {self.message} ({then})"


class Change(NamedTuple):
    """What a new snapshot changed.

    Attributes:
        added: Keys that were not there before, sorted.
        removed: Keys that are gone, sorted.
        changed: Keys whose definition differs, sorted.
        before: Digest of the snapshot before.
        after: Digest of the snapshot now.
        problems: What is wrong with the file now.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    before: str
    after: str
    problems: tuple[Problem, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that was added, removed or changed, sorted."""
        return tuple(sorted({*self.added, *self.removed, *self.changed}))


class Snapshot:
    """All flags at one moment. Immutable, safe to share between threads.

    Its digest names what it decides: snapshots of equal digest answer every question alike, in any process.

    Examples:
        >>> from mlkit.flags import Flags
        >>> with Flags.in_memory({"ranker": "v1"}).snapshot() as snapshot:
        ...     "ranker" in snapshot, len(snapshot), list(snapshot)
        (True, 1, ['ranker'])
    """

    __slots__ = ("__weakref__", "broken", "definitions", "digest", "metadata")
    definitions: Mapping[str, Definition]
    broken: Mapping[str, str]
    metadata: Mapping[str, Any]
    digest: str

    def __init__(
        self,
        definitions: Mapping[str, Definition],
        broken: Mapping[str, str],
        metadata: Mapping[str, Any],
    ) -> None:
        from msgspec.json import encode

        self.definitions, self.broken, self.metadata = definitions, broken, metadata
        digests = {key: definition.digest for key, definition in definitions.items()}
        self.digest = digest_bytes(encode(digests, order="deterministic"))

    def __contains__(self, key: object) -> bool:
        return key in self.definitions

    def __len__(self) -> int:
        return len(self.definitions)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.definitions))

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self)} flags, {self.digest[:19]}>"


class Document(NamedTuple):
    """What a file says.

    Attributes:
        definitions: The flags in force by key, last good ones among them.
        raw: The bytes of each flag of the file, good or not.
        shared: Evaluators and metadata.
        head: The bytes of evaluators and metadata.
        problems: What is wrong.
        broken: Why a flag without a good definition has none, by key.
    """

    definitions: dict[str, Definition]
    raw: dict[str, bytes]
    shared: Shared
    head: tuple[bytes, bytes]
    problems: tuple[Problem, ...]
    broken: dict[str, str]


def parse(data: bytes, source: str, last: Document | None) -> Document:
    """Return what a file says, reading anew only the flags whose bytes differ from *last*.

    Args:
        data: The file.
        source: Where it comes from, for messages.
        last: What it said before, whose good definitions stand in for bad ones.

    Raises:
        FlagFileError: If the file as a whole cannot be used.
    """
    from mlkit.flags._check import RuleError

    if len(data) > MAX_BYTES:
        raise FlagFileError(source, f"{len(data)} bytes; a flag file has at most {MAX_BYTES}")
    raw, head = _split(data, source)
    shared = last.shared if last is not None and head == last.head else _shared(head, source)
    definitions: dict[str, Definition] = {}
    problems: list[Problem] = []
    broken: dict[str, str] = {}
    known = last.definitions if last is not None else {}
    same = last.raw if last is not None and last.shared is shared else {}
    failed = {problem.flag: problem for problem in last.problems} if last is not None else {}
    for key, body in raw.items():
        old = known.get(key)
        if old is not None and same.get(key) == body:
            definitions[key] = old
            if key in failed:
                problems.append(failed[key])
            continue
        try:
            definitions[key] = _define(key, body, shared)
        except RuleError as error:
            error.under(key)
            error.under("flags")
            pointer = clip(error.pointer, 200)
            problems.append(Problem(key, pointer, error.reason, old is not None))
            if old is not None:
                definitions[key] = old
            else:
                broken[key] = f"{pointer}: {error.reason}"
    return Document(definitions, raw, shared, head, tuple(problems), broken)


def _define(key: str, body: bytes, shared: Shared) -> Definition:
    from mlkit.flags._check import RuleError
    from mlkit.flags._definition import Definition

    try:
        return Definition(key, _decode(body), shared)
    except RecursionError:
        raise RuleError("", "nested too deeply") from None


def changed(before: Snapshot, after: Snapshot, problems: tuple[Problem, ...]) -> Change:
    """Return what differs between two snapshots."""
    old, new = before.definitions, after.definitions
    return Change(
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(old.keys() - new.keys())),
        tuple(sorted(key for key in new.keys() & old.keys() if new[key].digest != old[key].digest)),
        before.digest,
        after.digest,
        problems,
    )


def _split(data: bytes, source: str) -> tuple[dict[str, bytes], tuple[bytes, bytes]]:
    """Return the bytes of each flag, and of evaluators and metadata."""
    from msgspec import DecodeError, Raw, ValidationError
    from msgspec.json import decode

    try:
        top = decode(data, type=dict[str, Raw])
        if "flags" not in top:
            has = f"; it has {listing(top)}" if top else ""
            raise FlagFileError(source, f"expected an object with a key 'flags'{has}")
        flags = decode(top["flags"], type=dict[str, Raw])
    except FlagFileError:
        raise
    except ValidationError as error:
        raise FlagFileError(source, f"an object of flags by key is expected: {error}") from None
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FlagFileError(source, f"not JSON that can be read: {error}") from None
    if "" in flags:
        raise FlagFileError(source, "/flags: a flag has an empty key")
    head = (bytes(top.get("$evaluators", b"{}")), bytes(top.get("metadata", b"{}")))
    return {key: bytes(body) for key, body in flags.items()}, head


def _shared(head: tuple[bytes, bytes], source: str) -> Shared:
    from mlkit.flags._bucket import GENERATIONS
    from mlkit.flags._check import RuleError
    from mlkit.flags._definition import Shared, scalar_mapping

    try:
        evaluators, metadata = _decode(head[0]), scalar_mapping(_decode(head[1]), "/metadata")
    except RuleError as error:
        raise FlagFileError(source, f"{error.pointer or '/'}: {error.reason}") from None
    if type(evaluators) is not dict:
        raise FlagFileError(source, "/$evaluators: an object of rules by name is expected")
    if metadata.get("bucketing", "v3") not in GENERATIONS:
        raise FlagFileError(
            source,
            f"/metadata/bucketing: expected {listing(GENERATIONS)}, got {clip(metadata['bucketing'], 40)}",
        )
    return Shared(evaluators, metadata)


def _decode(body: bytes) -> Any:
    from msgspec import DecodeError
    from msgspec.json import decode

    from mlkit.flags._check import RuleError

    try:
        return decode(body)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RuleError("", f"not JSON that can be read: {error}") from None


def encode_document(document: Mapping[str, Any], source: str) -> bytes:
    """Return a document given as Python data as the bytes of a file.

    Raises:
        FlagFileError: If it is not JSON.
    """
    from msgspec.json import encode

    try:
        return encode(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise FlagFileError(source, f"not JSON: {error}") from None


def static_document(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document whose flags always have the given values."""
    flags = {}
    for key, value in values.items():
        name = (
            str(value).lower()
            if type(value) is bool
            else value
            if type(value) is str and value
            else "value"
        )
        flags[key] = {"state": "ENABLED", "variants": {name: value}, "defaultVariant": name}
    return {"flags": flags}
