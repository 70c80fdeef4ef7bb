"""The text of one flag, read: what flags of equal text have in common, whatever their keys."""

from __future__ import annotations

import re
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, final

from mlkit._suggest import clip, listing
from mlkit.flags._bucket import GENERATIONS
from mlkit.flags._check import RuleError
from mlkit.flags._logic import OPERATORS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "MAX_FLAG_BYTES",
    "Body",
    "Reader",
    "freeze",
    "look_closely",
    "scalar_mapping",
    "too_long",
]

MAX_FLAG_BYTES = 256 * 2**10
_SHORTEST = len('{"state":"ENABLED","variants":{"a":1}}')
_SHORT = 100
_MAX_SAFE = 2**53 - 1
_KINDS: Final = {
    bool: "boolean",
    str: "string",
    int: "number",
    float: "number",
    dict: "object",
    list: "object",
}
_GLANCED: Final = {bool: "boolean", str: "string", int: "number", float: "number"}
_STATES = frozenset({"ENABLED", "DISABLED"})
_SCALARS = frozenset({str, int, float, bool})
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_FIRST_KEYS = re.compile(rb'\{"([^"\\]*)":').findall
# A reference needs the evaluators, so it is looked at the long way.
_KNOWN = frozenset(name.encode() for name in OPERATORS) - {b"$ref"}
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


@final
class Body:
    """The text of a flag without spaces, read and found good but for references. Immutable in effect.

    Args:
        text: The bytes.
        enabled: Whether its state is `"ENABLED"`.
        kind: The type of its variants.
        variants: The value of each, read-only.
        default_variant: The one without a rule's say.
        metadata: Its own.
        rule: The bytes of its rule, empty if it has none.
        plain: Whether the rule is known to be good: what is not plain may refer to evaluators.
    """

    __slots__ = (
        "_document",
        "default_variant",
        "enabled",
        "kind",
        "metadata",
        "plain",
        "rule",
        "text",
        "variants",
    )
    text: bytes
    enabled: bool
    kind: str
    variants: Mapping[str, Any]
    default_variant: str | None
    metadata: Mapping[str, Any]
    rule: bytes
    plain: bool

    def __init__(  # noqa: PLR0917 - by keywords it costs twice as much, ten thousand times a load
        self,
        text: bytes,
        enabled: bool,  # noqa: FBT001 - one maker, in this file
        kind: str,
        variants: Mapping[str, Any],
        default_variant: str | None,
        metadata: Mapping[str, Any],
        rule: bytes,
        plain: bool,  # noqa: FBT001 - as above
    ) -> None:
        self.text, self.enabled, self.kind, self.variants = text, enabled, kind, variants
        self.default_variant, self.metadata = default_variant, metadata
        self.rule, self.plain = rule, plain
        self._document: dict[str, Any] | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The flag as plain data; kept once asked for, and never changed."""
        if self._document is None:
            from msgspec.json import decode

            self._document = decode(self.text, type=dict[str, Any])
        return self._document


@final
class Reader:
    """Reads the flags of one file.

    Nearly all are found good by a few steps over their bytes; what these do not understand is looked at node by node.
    """

    __slots__ = ("_absent", "_compact", "_decode", "_shapes", "_trouble", "_variants")

    def __init__(self) -> None:
        from msgspec import UNSET, DecodeError, ValidationError
        from msgspec.json import format as compact

        self._decode, self._absent, self._compact = _decoder(), UNSET, compact
        self._trouble = (ValidationError, DecodeError, UnicodeDecodeError, RecursionError)
        self._shapes: dict[bytes, int] = {}
        self._variants: dict[bytes, tuple[Mapping[str, Any], str | None]] = {}

    def glance(self, text: bytes) -> Body | None:
        """Return what a flag's text says, None if that takes a closer look.

        Args:
            text: The flag.
        """
        if not _SHORTEST <= len(text) <= MAX_FLAG_BYTES:
            return None
        try:
            text = self._compact(text, indent=-1)
            return self._at_a_glance(text, self._decode(text))
        except self._trouble:
            return None

    def read(self, text: bytes) -> Body:
        """Return what a flag's text says.

        Args:
            text: The flag.

        Raises:
            RuleError: If it is no flag that can be used.
        """
        if len(text) > MAX_FLAG_BYTES:
            raise too_long(len(text))
        return self.glance(text) or look_closely(text)

    def _at_a_glance(self, text: bytes, flag: Any) -> Body | None:
        """Return the body if nothing about it needs a closer look."""
        default, metadata, raw = flag.defaultVariant, flag.metadata, bytes(flag.variants)
        variants, kind = self._variants.get(raw) or self._variants_of(raw)
        if kind is None or flag.state not in _STATES:
            return None
        n_keys = 2 + len(variants)
        if default is not self._absent:
            n_keys += 1
            if default and default not in variants:
                return None
        if metadata is self._absent:
            metadata = _NOTHING
        else:
            n_keys += 1 + len(metadata)
            if not _good_metadata(metadata):
                return None
        rule = bytes(flag.targeting)
        if rule:
            # Equal but for its digits, a rule has the same operators in the same places.
            shape = rule.translate(_DIGITS)
            n_names = self._shapes.get(shape)
            if n_names is None:
                n_names = self._shapes[shape] = _operators_in(shape)
            if n_names == 0:
                return None
            n_keys += 1 + n_names
        # Any key that is not accounted for is there twice, or has a name that is not ours. A byte is found sooner than two,
        # and most texts have no other colons.
        if text.count(b":") != n_keys and text.count(b'":') != n_keys:
            return None
        enabled, plain = flag.state == "ENABLED", True
        return Body(text, enabled, kind, variants, default or None, metadata, rule, plain)

    def _variants_of(self, raw: bytes) -> tuple[Mapping[str, Any], str | None]:
        """Return variants and their type, None if they need a closer look; many flags have the same ones."""
        variants = _plain_decoder()(raw)
        kinds = {*map(type, variants.values())}
        kind = _GLANCED.get(kinds.pop()) if len(kinds) == 1 else None
        large = kind == "number" and not all(
            -_MAX_SAFE <= each <= _MAX_SAFE for each in variants.values()
        )
        made = MappingProxyType(variants), None if "" in variants or large else kind
        if len(raw) <= _SHORT:
            self._variants[raw] = made
        return made


@cache
def _plain_decoder() -> Callable[[bytes], dict[str, Any]]:
    from msgspec.json import Decoder

    return Decoder(dict[str, Any]).decode


@cache
def _decoder() -> Callable[[bytes], Any]:
    """Return the decoder of a flag's own members; msgspec costs 35 ms at its first import."""
    from msgspec import UNSET, Raw, UnsetType, defstruct
    from msgspec.json import Decoder

    fields: list[Any] = [
        ("state", str),
        ("variants", Raw),
        ("defaultVariant", str | None | UnsetType, UNSET),
        ("targeting", Raw, Raw(b"")),
        ("metadata", dict[str, Any] | UnsetType, UNSET),
    ]
    return Decoder(defstruct("Flag", fields, gc=False)).decode


def _good_metadata(metadata: Mapping[str, Any]) -> bool:
    return (
        _SCALARS.issuperset(map(type, metadata.values()))
        and metadata.get("bucketing", "v3") in GENERATIONS
    )


def _operators_in(shape: bytes) -> int:
    """Return how many operators a rule has if it surely is a good one, 0 otherwise.

    It is one if each of its objects begins with a known operator and has no second key, if so few brackets cannot nest too
    deeply, and if it has no numbers that JSON may not have: with an exponent, or of 16 digits.
    """
    names = _FIRST_KEYS(shape)
    if (
        shape[:1] != b"{"
        or len(names) != shape.count(b'":')
        or not _KNOWN.issuperset(names)
        or len(names) + shape.count(b"[") > 60
        or b"0" * 16 in shape
        or b"0e" in shape
        or b"0E" in shape
    ):
        return 0
    return len(names)


def too_long(length: int) -> RuleError:
    """Return what is wrong with a flag of *length* bytes."""
    return RuleError("", f"{length} bytes; a flag has at most {MAX_FLAG_BYTES}")


def look_closely(text: bytes) -> Body:
    """Return what a flag's text says, looked at node by node.

    Args:
        text: The flag.

    Raises:
        RuleError: If it is no flag that can be used.
    """
    from msgspec import DecodeError
    from msgspec.json import decode, encode
    from msgspec.json import format as compact

    try:
        text = compact(text, indent=-1)
        document = decode(text)
    except RecursionError:
        raise RuleError("", "nested too deeply") from None
    except (DecodeError, UnicodeDecodeError) as error:
        raise RuleError("", f"not JSON that can be read: {error}") from None
    if type(document) is not dict:
        raise RuleError("", f"a flag is an object, not {clip(document, 40)}")
    enabled = _state(document.get("state"))
    kind, variants = _variants(document.get("variants"))
    default = _default(document.get("defaultVariant"), variants)
    metadata = scalar_mapping(document.get("metadata"), "/metadata")
    generation = metadata.get("bucketing", "v3")
    if generation not in GENERATIONS:
        reason = f"expected {listing(GENERATIONS)}, got {clip(generation, 40)}"
        raise RuleError("/metadata/bucketing", reason)
    rule = document.get("targeting")
    if rule is not None and type(rule) is not dict:
        raise RuleError("/targeting", f"a rule is an object, not {clip(rule, 40)}")
    return Body(
        text,
        enabled,
        kind,
        variants,
        default,
        metadata,
        encode(rule) if rule else b"",
        not rule,
    )


def _state(state: Any) -> bool:
    if type(state) is not str or state not in _STATES:
        shown, near = clip(state, 40), None
        if type(state) is str:
            shown, near = repr(shown), (state, ("ENABLED", "DISABLED"))
        raise RuleError("/state", f"expected 'ENABLED' or 'DISABLED', got {shown}", near)
    return state == "ENABLED"


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
        if type(item) not in _SCALARS:
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
        near = (name, variants) if type(name) is str else None
        brief = f"no variant {clip(name, 40)}; there are {listing(variants)}"
        raise RuleError("/defaultVariant", brief, near)
    return name
