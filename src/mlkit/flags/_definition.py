"""One flag of a file, ready to decide."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from mlkit._digest import digest_bytes
from mlkit.flags._body import Reader, freeze
from mlkit.flags._check import Facts, RuleError, check_rule
from mlkit.flags._logic import compile_rule
from mlkit.flags._operators import limited
from mlkit.flags._rule import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlkit.flags._body import Body

__all__ = ["Definition", "Definitions", "Shared", "freeze"]

_NO_RULE = Facts(0, 0, frozenset(), flagd=False, iterates=False)


@final
class Shared:
    """What the flags of one file have in common: evaluators and metadata.

    Args:
        evaluators: Rules by name.
        metadata: Facts about the set; `bucketing` names the generation for all flags that name none.
    """

    __slots__ = ("evaluators", "known", "metadata")
    evaluators: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def __init__(self, evaluators: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self.evaluators, self.metadata = evaluators, MappingProxyType(dict(metadata))
        self.known: dict[str, Facts | RuleError] = {}


class _Made:
    """What a definition makes on first use."""

    __slots__ = ("code", "digest", "facts", "metadata", "node")

    def __init__(self, node: Any, facts: Facts) -> None:
        self.node, self.facts = node, facts
        self.code: Callable[[Any], Any] | None = None
        self.digest: str | None = None
        self.metadata: Mapping[str, Any] | None = None


@final
class Definition:
    """One flag. Immutable, but for what is made on first use; two threads may both make it.

    Args:
        key: The flag.
        body: What its text says.
        shared: What it has in common with the others of its file.

    Raises:
        RuleError: If its rule refers to what is not there.
    """

    __slots__ = ("_lazy", "body", "key", "shared")
    key: str
    body: Body
    shared: Shared

    def __init__(self, key: str, body: Body, shared: Shared) -> None:
        self.key, self.body, self.shared = key, body, shared
        # Ten thousand of these are made at a load, and few are asked: what can wait does.
        self._lazy: _Made | None = None if body.plain else self._look()

    def _look(self) -> _Made:
        from msgspec.json import decode

        if not self.body.rule:
            return _Made(None, _NO_RULE)
        node = decode(self.body.rule)
        try:
            return _Made(node, check_rule(node, self.shared.evaluators, self.shared.known))
        except RuleError as error:
            error.under("targeting")
            raise
        except RecursionError:
            raise RuleError("/targeting", "nested too deeply") from None

    @property
    def _made(self) -> _Made:
        if self._lazy is None:
            self._lazy = self._look()
        return self._lazy

    @property
    def enabled(self) -> bool:
        """Whether it decides anything."""
        return self.body.enabled

    @property
    def kind(self) -> str:
        """The type of its variants."""
        return self.body.kind

    @property
    def variants(self) -> Mapping[str, Any]:
        """The value of each variant."""
        return self.body.variants

    @property
    def default_variant(self) -> str | None:
        """The variant without a rule's say."""
        return self.body.default_variant

    @property
    def document(self) -> dict[str, Any]:
        """Its JSON; never to be changed."""
        return self.body.document

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Its metadata over those of its file."""
        own, made = self.body.metadata, self._made
        if not own:
            return self.shared.metadata
        if made.metadata is None:
            made.metadata = MappingProxyType({**self.shared.metadata, **own})
        return made.metadata

    @property
    def generation(self) -> str:
        """The bucketing generation."""
        return self.metadata.get("bucketing", "v3")  # type: ignore[no-any-return]

    @property
    def rule(self) -> Any:
        """Its rule, None without one."""
        return self._made.node

    @property
    def facts(self) -> Facts:
        """What the rule needs."""
        return self._made.facts

    @property
    def digest(self) -> str:
        """Digest of all that its answers depend on; equal for other spaces and another order of names."""
        made = self._made
        if made.digest is None:
            made.digest = self._identify()
        return made.digest

    def _identify(self) -> str:
        from msgspec.json import encode

        shared = self.shared
        identity: list[Any] = [
            self.key,
            self.document,
            self.generation,
            {name: shared.evaluators[name] for name in self.facts.references},
        ]
        # A handle on a model takes its URI from here, `model.<variant>`.
        uris = {f"model.{name}" for name in self.variants} & shared.metadata.keys()
        uris -= self.body.metadata.keys()
        if uris:
            identity.append({name: shared.metadata[name] for name in uris})
        return digest_bytes(encode(identity, order="deterministic"))

    @property
    def scope(self) -> Scope:
        """What the rule means depends on."""
        return Scope(self.key, self.generation, self.shared.evaluators)

    @property
    def decide(self) -> Callable[[Any], Any]:
        """The rule as a function of the context."""
        made = self._made
        if made.code is None:
            code = compile_rule(made.node, self.scope)
            made.code = limited(code) if made.facts.iterates else code
        return made.code

    def decides_as(self, other: Definition) -> bool:
        """Return whether *other* surely gives the same answers; the digest of neither is made where that can be helped."""
        if self is other:
            return True
        alike = self.body is other.body and self.body.plain
        if alike and self.shared.metadata == other.shared.metadata:
            return True
        return self.digest == other.digest

    def with_document(self, document: dict[str, Any]) -> Definition:
        """Return the same flag with other contents.

        Raises:
            RuleError: If they are not a valid flag.
        """
        from msgspec.json import encode

        return Definition(self.key, Reader().read(encode(document)), self.shared)


@final
class Definitions(Mapping[str, Definition]):
    """The flags of one file by key. Immutable in effect: a definition is made when it is first asked for.

    Args:
        bodies: What the text of each flag says.
        shared: What they have in common.
        made: Definitions that are there already; added to.
    """

    __slots__ = ("_made", "bodies", "shared")
    bodies: Mapping[str, Body]
    shared: Shared

    def __init__(
        self, bodies: Mapping[str, Body], shared: Shared, made: dict[str, Definition]
    ) -> None:
        self.bodies, self.shared, self._made = bodies, shared, made

    def __getitem__(self, key: str) -> Definition:
        made = self._made.get(key)
        if made is None:
            # `setdefault`, so that two threads that ask at once get the same one.
            made = self._made.setdefault(key, Definition(key, self.bodies[key], self.shared))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.bodies)

    def __len__(self) -> int:
        return len(self.bodies)

    def __contains__(self, key: object) -> bool:
        return key in self.bodies

    @property
    def made(self) -> Mapping[str, Definition]:
        """Those that were asked for."""
        return self._made

    def patched(self, others: Mapping[str, Definition]) -> Definitions:
        """Return the same with *others* in place of some."""
        bodies = {key: definition.body for key, definition in others.items()}
        return Definitions({**self.bodies, **bodies}, self.shared, {**self._made, **others})

    def differing(self, other: Definitions, keys: Iterable[str]) -> list[str]:
        """Return those of *keys* that both have, and at which they may decide differently, sorted."""
        same = self.shared is other.shared
        found = []
        for key in keys:
            body, before = self.bodies.get(key), other.bodies.get(key)
            if body is None or before is None or (same and before is body and body.plain):
                continue
            if not self[key].decides_as(other[key]):
                found.append(key)
        return sorted(found)
