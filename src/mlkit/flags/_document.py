"""A whole flag file: bytes in, definitions and problems out, and what changed since the last one."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._digest import digest_bytes
from mlkit._suggest import clip, listing
from mlkit.errors import FlagFileError
from mlkit.flags._parts import MAX_BYTES, split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mlkit.flags._body import Body
    from mlkit.flags._definition import Definition, Definitions, Shared
    from mlkit.flags._parts import Parts

__all__ = [
    "MAX_BYTES",
    "Change",
    "Document",
    "Problem",
    "Snapshot",
    "changed",
    "parse",
    "snapshot_of",
]

_BLOCK = 512
_COPIED = 4 * 2**20


class Problem(NamedTuple):
    """One thing wrong with a flag file.

    Attributes:
        flag: The flag that it concerns, None if the whole file.
        pointer: Where in the file, as a JSON pointer: `"/flags/ranker/targeting/iff"`.
        message: What is there, and what should be.
        kept: Whether an earlier definition of the flag, or an earlier file, stays in force.
        severity: `"error"` if the flag is set aside, `"warning"` if it is in force as the file has it, though
            something in it is not what it seems: a key that is there twice, or what flagd's schema does not have.
        line: Line of that place, from 1; 0 where there is none.
        column: Column of that place in characters, from 1; 0 where there is none.
    """

    flag: str | None
    pointer: str
    message: str
    kept: bool
    severity: str = "error"
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        then = "the last good one stays in force" if self.kept else "callers get their default"
        if self.severity == "warning":
            then = "warning"
        place = f"line {self.line}, column {self.column}: " if self.line else ""
        return f"{place}{self.pointer}: {self.message} ({then})"


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
    definitions: Definitions
    broken: Mapping[str, str]
    metadata: Mapping[str, Any]
    digest: str

    def __init__(
        self,
        definitions: Definitions,
        broken: Mapping[str, str],
        metadata: Mapping[str, Any],
        digest: str,
    ) -> None:
        self.definitions, self.broken, self.metadata = definitions, broken, metadata
        self.digest = digest

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
        refused: The bytes of each flag that is not in force as the file has it, by key.
        shared: Evaluators and metadata.
        head: The bytes of evaluators and metadata.
        problems: What keeps a flag or more from being in force.
        broken: Why a flag without a good definition has none, by key.
        blocks: Hashes of the flags in force, so many at a time.
        digest: Digest of all that they decide by; spaces do not count.
        known: What each text of a flag in force says.
    """

    definitions: Definitions
    refused: dict[str, bytes]
    shared: Shared
    head: tuple[bytes, bytes]
    problems: tuple[Problem, ...]
    broken: dict[str, str]
    blocks: tuple[bytes, ...]
    digest: str
    known: dict[bytes, Body]

    @property
    def raw(self) -> dict[str, bytes]:
        """The bytes of each flag of the file, good or not."""
        good = {key: body.text for key, body in self.definitions.bodies.items()}
        return {**good, **self.refused}


def parse(data: bytes, source: str, last: Document | None) -> Document:
    """Return what a file says, reading anew only the flags whose bytes differ from *last*.

    Args:
        data: The file.
        source: Where it comes from, for messages.
        last: What it said before, whose good definitions stand in for bad ones.

    Raises:
        FlagFileError: If the file as a whole cannot be used.
    """
    from mlkit.flags._aside import Aside
    from mlkit.flags._body import Reader
    from mlkit.flags._check import RuleError
    from mlkit.flags._definition import Definition, Definitions, Shared

    parts = split(data, source)
    texts = _texts(parts, len(data))
    old = Definitions({}, Shared({}, {}), {}) if last is None else last.definitions
    known = {} if last is None else last.known
    same = last is not None and parts.head == last.head
    shared = last.shared if last is not None and same else _shared(parts, source)
    glance, aside = Reader().glance, Aside(source, old)
    bodies: dict[str, Body] = {}
    made: dict[str, Definition] = {}
    read: dict[bytes, Body] = {}
    for key, text in zip(parts.flags, texts, strict=True):
        body = read.get(text)
        if body is not None and body.plain:
            bodies[key] = body
            continue
        body = body or known.get(text)
        if body is None:
            fresh = glance(text)
            body = None if fresh is None else _as_before(old, key, fresh)
        if body is None or not body.plain:
            try:
                if body is None:
                    body = _as_before(old, key, aside.look(text, parts.flags[key]))
                made[key] = _again(old, key, body, shared) or Definition(key, body, shared)
            except RuleError as error:
                aside.add(key, text, error)
                if key in old:
                    bodies[key], made[key] = old.bodies[key], old[key]
                continue
        bodies[key] = read[text] = body
    for key in old.made if same else ():
        if bodies.get(key) is old.bodies[key]:
            made[key] = old[key]
    definitions = Definitions(bodies, shared, made)
    blocks = _blocks(definitions, last)
    digest = _identify(definitions, blocks)
    return Document(
        definitions,
        aside.texts,
        shared,
        parts.head,
        aside.problems(),
        aside.broken,
        blocks,
        digest,
        read,
    )


def _texts(parts: Parts, size: int) -> Iterable[bytes]:
    """Return the bytes of each flag; of one that is too long, in a large file, no more than shows that it is."""
    if size <= _COPIED:
        return map(bytes, parts.flags.values())
    from mlkit.flags._body import MAX_FLAG_BYTES

    return (bytes(memoryview(raw)[: MAX_FLAG_BYTES + 1]) for raw in parts.flags.values())


def _as_before(old: Definitions, key: str, body: Body) -> Body:
    """Return the body that *key* had if only spaces changed, so that it need not be compared at length."""
    before = old.bodies.get(key)
    return before if before is not None and before.text == body.text else body


def _again(old: Definitions, key: str, body: Body, shared: Shared) -> Definition | None:
    """Return the definition that *key* had, if it is still the same."""
    same = old.bodies.get(key) is body
    return old[key] if same and old[key].shared is shared else None


def _blocks(definitions: Definitions, last: Document | None) -> tuple[bytes, ...]:
    """Return the hashes of all flags; where keys and bodies are those of *last*, so is the hash."""
    keys, bodies = list(definitions.bodies), list(definitions.bodies.values())
    before = {} if last is None else last.definitions.bodies
    old_keys, old_bodies = list(before), list(before.values())
    made = []
    for number, begin in enumerate(range(0, len(keys), _BLOCK)):
        part = slice(begin, begin + _BLOCK)
        same = bodies[part] == old_bodies[part] and keys[part] == old_keys[part]
        made.append(
            last.blocks[number] if same and last is not None else _block(keys[part], bodies[part])
        )
    return tuple(made)


def _block(keys: list[str], bodies: list[Body]) -> bytes:
    """Return the hash of the keys and texts of some flags."""
    from msgspec.json import encode

    return sha256(encode(keys) + b",".join([body.text for body in bodies])).digest()


def _identify(definitions: Definitions, blocks: tuple[bytes, ...]) -> str:
    """Return the digest of what decides: the flags' texts in their order, and what they refer to."""
    from msgspec.json import encode

    shared = definitions.shared
    used: set[str] = set()
    elsewhere: dict[str, str] = {}  # good under evaluators and metadata that the file no longer has
    for key, definition in definitions.made.items():
        if definition.shared is not shared:
            elsewhere[key] = definition.digest
        elif not definition.body.plain:
            used |= definition.facts.references
    evaluators = {name: shared.evaluators[name] for name in used}
    common = [len(definitions), evaluators, dict(shared.metadata), elsewhere]
    return digest_bytes(encode(common, order="deterministic") + b"".join(blocks))


def snapshot_of(document: Document, patched: Mapping[str, Definition]) -> Snapshot:
    """Return the flags of *document*, with others in place of some."""
    definitions, digest = document.definitions, document.digest
    if patched:
        definitions = definitions.patched(patched)
        # Only what holds a patched flag is hashed again: taking a rollout back must not wait for 10,000 flags.
        keys, bodies = list(definitions.bodies), list(definitions.bodies.values())
        blocks = list(document.blocks)
        for number, begin in enumerate(range(0, len(keys), _BLOCK)):
            part = slice(begin, begin + _BLOCK)
            if not patched.keys().isdisjoint(keys[part]):
                blocks[number] = _block(keys[part], bodies[part])
        digest = _identify(definitions, tuple(blocks))
    return Snapshot(definitions, document.broken, document.shared.metadata, digest)


def changed(
    before: Snapshot,
    after: Snapshot,
    problems: tuple[Problem, ...],
    patched: Iterable[str] | None = None,
) -> Change:
    """Return what differs between two snapshots.

    Args:
        before: The one.
        after: The other.
        problems: What is wrong with the file now.
        patched: The flags that can differ, if both are of one document; None if any can.
    """
    old, new = before.definitions, after.definitions
    added: set[str] = set()
    removed: set[str] = set()
    if patched is None:
        added = new.bodies.keys() - old.bodies.keys()
        removed = old.bodies.keys() - new.bodies.keys()
    return Change(
        tuple(sorted(added)),
        tuple(sorted(removed)),
        tuple(new.differing(old, new if patched is None else patched)),
        before.digest,
        after.digest,
        problems,
    )


def _shared(parts: Parts, source: str) -> Shared:
    from msgspec import DecodeError, ValidationError
    from msgspec.json import decode

    from mlkit.flags._body import scalar_mapping
    from mlkit.flags._bucket import GENERATIONS
    from mlkit.flags._check import RuleError
    from mlkit.flags._definition import Shared

    read: list[Any] = []
    for name, text in zip(("$evaluators", "metadata"), parts.head, strict=True):
        try:
            read.append(decode(text))
        except (DecodeError, ValidationError, RecursionError) as error:
            raise FlagFileError(source, f"/{name}: not JSON that can be read: {error}") from None
    evaluators, metadata = read
    try:
        metadata = scalar_mapping(metadata, "/metadata")
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
