"""One flag, read from its JSON and ready to decide."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from mlkit._digest import digest_bytes
from mlkit._suggest import clip, did_you_mean, listing
from mlkit.flags._bucket import GENERATIONS
from mlkit.flags._check import Facts, RuleError, check_rule
from mlkit.flags._logic import compile_rule
from mlkit.flags._operators import limited
from mlkit.flags._rule import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Definition", "Shared", "freeze", "scalar_mapping"]

_MAX_SAFE = 2**53 - 1
_KINDS = {
    bool: "boolean",
    str: "string",
    int: "number",
    float: "number",
    dict: "object",
    list: "object",
}
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
        self.known: dict[str, Facts] = {}


@final
class Definition:
    """One flag. Immutable, but for the rule that is compiled on first use; two threads may both compile it.

    Args:
        key: The flag.
        document: Its JSON; kept and never changed.
        shared: What it has in common with the others of its file.

    Raises:
        RuleError: If it is not a valid flag.
    """

    __slots__ = (
        "_compiled",
        "default_variant",
        "digest",
        "document",
        "enabled",
        "facts",
        "generation",
        "key",
        "kind",
        "metadata",
        "rule",
        "shared",
        "variants",
    )
    key: str
    document: dict[str, Any]
    shared: Shared
    enabled: bool
    kind: str
    variants: Mapping[str, Any]
    default_variant: str | None
    metadata: Mapping[str, Any]
    facts: Facts
    rule: Any
    digest: str

    def __init__(self, key: str, document: Any, shared: Shared) -> None:
        from msgspec.json import encode

        if type(document) is not dict:
            raise RuleError("", f"a flag is an object, not {clip(document, 40)}")
        self.key, self.document, self.shared = key, document, shared
        state = document.get("state")
        if type(state) is not str or state not in {"ENABLED", "DISABLED"}:
            shown, near = clip(state, 40), ""
            if type(state) is str:
                shown, near = repr(shown), did_you_mean(state, ("ENABLED", "DISABLED"))
            raise RuleError("/state", f"expected 'ENABLED' or 'DISABLED', got {shown}{near}")
        self.enabled = state == "ENABLED"
        self.kind, self.variants = _variants(document.get("variants"))
        self.default_variant = _default(document.get("defaultVariant"), self.variants)
        own = scalar_mapping(document.get("metadata"), "/metadata")
        self.metadata = MappingProxyType({**shared.metadata, **own}) if own else shared.metadata
        self.generation: str = self.metadata.get("bucketing", "v3")
        if self.generation not in GENERATIONS:
            raise RuleError(
                "/metadata/bucketing",
                f"expected {listing(GENERATIONS)}, got {clip(self.generation, 40)}",
            )
        self.rule, self.facts = self._check(document.get("targeting"))
        identity: list[Any] = [
            key,
            document,
            self.generation,
            {name: shared.evaluators[name] for name in self.facts.references},
        ]
        # A handle on a model takes its URI from here, `model.<variant>`.
        uris = {f"model.{name}" for name in self.variants} & shared.metadata.keys() - own.keys()
        if uris:
            identity.append({name: shared.metadata[name] for name in uris})
        self.digest = digest_bytes(encode(identity, order="deterministic"))
        self._compiled: Callable[[Any], Any] | None = None

    def _check(self, rule: Any) -> tuple[Any, Facts]:
        if rule is None or rule == {}:
            return None, _NO_RULE
        if type(rule) is not dict:
            raise RuleError("/targeting", f"a rule is an object, not {clip(rule, 40)}")
        try:
            return rule, check_rule(rule, self.shared.evaluators, self.shared.known)
        except RuleError as error:
            error.under("targeting")
            raise

    @property
    def scope(self) -> Scope:
        """What the rule means depends on."""
        return Scope(self.key, self.generation, self.shared.evaluators)

    @property
    def decide(self) -> Callable[[Any], Any]:
        """The rule as a function of the context."""
        if self._compiled is None:
            code = compile_rule(self.rule, self.scope)
            self._compiled = limited(code) if self.facts.iterates else code
        return self._compiled

    def with_document(self, document: dict[str, Any]) -> Definition:
        """Return the same flag with other contents.

        Raises:
            RuleError: If they are not a valid flag.
        """
        return Definition(self.key, document, self.shared)


def freeze(value: Any) -> Any:
    """Return JSON *value* so that a caller cannot change it: mappings read-only, lists as tuples."""
    if type(value) is dict:
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    return tuple(map(freeze, value)) if type(value) is list else value


def scalar_mapping(value: Any, pointer: str) -> dict[str, Any]:
    """Return metadata, which maps text to text, numbers and booleans.

    Raises:
        RuleError: If it does not.
    """
    if value is None:
        return {}
    if type(value) is not dict:
        raise RuleError(pointer, f"metadata is an object, not {clip(value, 40)}")
    for key, item in value.items():
        if not key or type(item) not in {str, int, float, bool}:
            raise RuleError(
                f"{pointer}/{clip(key, 40)}",
                f"expected a text, number or boolean, got {clip(item, 40)}",
            )
    return value


def _variants(document: Any) -> tuple[str, Mapping[str, Any]]:
    if type(document) is not dict or not document:
        raise RuleError(
            "/variants", f"expected an object of at least one variant, got {clip(document, 40)}"
        )
    kinds = {_KINDS.get(type(value)) for value in document.values()}
    if len(kinds) > 1 or None in kinds or "" in document:
        _refuse_variants(document)
    (kind,) = kinds
    if kind == "number":
        for name, value in document.items():
            if type(value) is int and abs(value) > _MAX_SAFE:
                reason = f"{value} is not exact in JSON; the largest integer is 2**53 - 1"
                raise RuleError(f"/variants/{clip(name, 40)}", reason)
    return str(kind), MappingProxyType(freeze(document) if kind == "object" else document)


def _refuse_variants(document: dict[str, Any]) -> None:
    for name, value in document.items():
        if not name or type(value) not in _KINDS:
            reason = f"{clip(value, 40)} is no value for a variant"
            raise RuleError(f"/variants/{clip(name, 40)}", reason)
    kinds = listing({_KINDS[type(value)] for value in document.values()})
    raise RuleError("/variants", f"all variants have one type, these are {kinds}")


def _default(name: Any, variants: Mapping[str, Any]) -> str | None:
    if name is None or name == "":
        return None
    if type(name) is bool:
        name = str(name).lower()
    if type(name) is not str or name not in variants:
        near = did_you_mean(name, variants) if type(name) is str else ""
        raise RuleError(
            "/defaultVariant",
            f"no variant {clip(name, 40)}{near or f'; there are {listing(variants)}'}",
        )
    return name
