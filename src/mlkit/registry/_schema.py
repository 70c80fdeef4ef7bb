"""The JSON Schema of what `build` accepts (draft 2020-12), one definition for each entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.errors import DuplicateNameError, EntryError, UnknownNameError
from mlkit.registry._check import Checker
from mlkit.registry._members import is_for, is_live, may_make
from mlkit.registry._plain import copy_plain
from mlkit.registry._plan import ABSENT, Parameter, Plan
from mlkit.registry._shape import IT, Choose, Fixed, Items, Node, Plain, Shape, Values
from mlkit.registry._target import qualified

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mlkit.registry._planned import Known
    from mlkit.registry._registry import Registry
    from mlkit.registry._validate import Validator

__all__ = ["schema_of"]

_NOTHING: dict[str, Any] = {"not": {}}
_JSON: dict[str, Any] = {
    "null": None,
    "boolean": True,
    "integer": 1,
    "number": 0.5,
    "string": "",
    "array": [],
    "object": {},
}


def schema_of(registry: Registry[Any], names: Collection[str]) -> dict[str, Any]:
    """Return the schema of specs that *registry* builds from an entry of *names*, imported for it.

    An entry that cannot be used is left out, as `build` refuses it.
    """
    writer = _Writer()
    root = writer.choice(Node(registry, None), names=frozenset(names))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": registry.name,
        **root,
        "$defs": dict(sorted(writer.definitions.items())),
    }


class _Writer:
    """Definitions by key, each written once; an entry may nest itself."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._keys: dict[Any, str] = {}
        self._alive: list[Registry[Any]] = []  # so that the id of none is used again meanwhile

    def _define(self, what: Any, wish: str) -> tuple[str, bool]:
        """Return the key of *what*, and whether it is new: two registries may have one name."""
        found = self._keys.get(what)
        if found is not None:
            return found, False
        key, n = wish, 1
        while key in self.definitions:
            n += 1
            key = f"{wish}-{n}"
        self._keys[what] = key
        self.definitions[key] = {}
        return key, True

    def choice(
        self,
        node: Node,
        *,
        names: frozenset[str] | None = None,
        without: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        """Return the schema of a nested spec: a name, or a mapping with a type."""
        registry, kind = node
        self._alive.append(registry)
        wish = registry.name if kind is None else f"{registry.name}:{qualified(kind)}"
        key, new = self._define((id(registry), kind, names, without), wish)
        if new:
            options = list(self._choices(node, names, without))
            self.definitions[key] = {"anyOf": options} if options else _NOTHING
        return {"$ref": _pointer(key)}

    def _choices(
        self, node: Node, names: frozenset[str] | None, without: frozenset[str]
    ) -> Iterator[dict[str, Any]]:
        registry, kind = node
        bare: list[str] = []
        for known, refs in _entries(registry):
            if kind is not None and not may_make(known, kind):
                continue
            if names is not None and known.entry.name not in names:
                continue
            allowed = [ref for ref in refs if ref not in without]
            if not allowed:
                continue
            if known.migrates or not known.plan.required:
                bare += [ref for ref in allowed if is_for(node, ref)]
            entry = {"$ref": _pointer(self._entry(registry, known, refs))}
            less = [{"properties": {"type": {"enum": allowed}}}] if len(allowed) < len(refs) else []
            yield {"allOf": [entry, *less]} if less else entry
        if bare:
            yield {"enum": bare}
        if names is None:
            for name, sample in _JSON.items():
                if not is_for(node, sample) and is_live(node, sample):
                    yield {"type": name, "not": {"required": ["type"]}}

    def _entry(self, registry: Registry[Any], known: Known, refs: list[str]) -> str:
        entry, plan = known.entry, known.plan
        key, new = self._define((id(registry), entry.ref), f"{registry.name}.{entry.ref}")
        if not new:
            return key
        kind = {"enum": refs}
        if known.migrates:  # what it takes only its function knows
            self.definitions[key] = {
                "title": entry.ref,
                "deprecated": True,
                "type": "object",
                "properties": {"type": kind},
                "required": ["type"],
            }
            return key
        plain = self._plain(plan.validator, key)
        properties: dict[str, Any] = {"type": kind}
        for name, parameter in plan.parameters.items():
            schema = self._parameter(parameter, plain.get(name, {}), key)
            if parameter.written is not ABSENT:
                schema = {**schema, "default": copy_plain(parameter.written)}
            properties[name] = schema
        about = {"deprecated": True} if entry.deprecated is not None else {}
        extras = self._extras(plan, key)
        self.definitions[key] = {
            "title": entry.ref,
            **about,
            "type": "object",
            "properties": properties,
            "required": ["type", *plan.required],
            "additionalProperties": extras,
        }
        return key

    def _extras(self, plan: Plan, key: str) -> Any:
        return False if plan.extras is None else self._parameter(plan.extras, {}, key)

    def _parameter(self, parameter: Parameter, plain: Any, key: str) -> dict[str, Any]:
        if parameter.obscure:
            return _NOTHING
        if parameter.shape is None:
            return dict(plain)
        schema = self._shape(parameter.shape, key)
        optional = isinstance(parameter.shape, Choose) and parameter.shape.optional
        return _any(schema, {"type": "null"}) if parameter.takes_none and not optional else schema

    def _shape(self, shape: Shape, key: str) -> dict[str, Any]:
        if isinstance(shape, Node):
            return self.choice(shape)
        if isinstance(shape, Plain):
            return self._leaf(shape, key)
        if isinstance(shape, Items):
            return {"type": "array", "items": self._shape(shape.inner, key)}
        if isinstance(shape, Values):
            return {"type": "object", "additionalProperties": self._shape(shape.inner, key)}
        if isinstance(shape, Fixed):
            n = len(shape.inner)
            inner = [self._shape(part, key) for part in shape.inner]
            return {
                "type": "array",
                "prefixItems": inner,
                "items": False,
                "minItems": n,
                "maxItems": n,
            }
        return self._one_of(shape, key)

    def _leaf(self, shape: Plain, key: str) -> dict[str, Any]:
        found = self._plain(shape.validator, f"{key}.{len(self.definitions)}")[IT]
        return dict(found)

    def _one_of(self, shape: Choose, key: str) -> dict[str, Any]:
        """Write a union as `choose` decides it: a registered name, or a mapping with a type, is a spec."""
        nodes = [member for member in shape.members if isinstance(member, Node)]
        names = [_refs(node.registry) for node in nodes]
        options: list[dict[str, Any]] = [{"type": "null"}] if shape.optional else []
        for member in shape.members:
            if isinstance(member, Node):
                others = [
                    refs for node, refs in zip(nodes, names, strict=True) if node is not member
                ]
                options.append(self.choice(member, without=frozenset().union(*others)))
            else:
                options.append(self._shape(member, key))
        if shape.rest is not None:
            claimed = []
            if nodes:
                claimed.append({"type": "object", "required": ["type"]})
                claimed.append({"enum": sorted(frozenset().union(*names))})
            if any(isinstance(member, Items | Fixed) for member in shape.members):
                claimed.append({"type": "array"})
            if any(isinstance(member, Values) for member in shape.members):
                claimed.append({"type": "object"})
            options.append({"allOf": [self._leaf(shape.rest, key)], "not": {"anyOf": claimed}})
        return _any(*options)

    def _plain(self, validator: Validator, key: str) -> dict[str, Any]:
        """Return the schemas of arguments that pydantic checks, by name; what they refer to becomes our definitions."""
        prefix = f"{key}/"
        properties, definitions = validator.json_schema(_pointer(prefix) + "{model}")
        for name, schema in definitions.items():
            self.definitions[prefix + name] = schema
        return properties


def _any(*options: dict[str, Any]) -> dict[str, Any]:
    return options[0] if len(options) == 1 else {"anyOf": list(options)}


def _pointer(key: str) -> str:
    from urllib.parse import quote

    return "#/$defs/" + quote(key.replace("~", "~0").replace("/", "~1"), safe="~")


def _entries(registry: Registry[Any]) -> Iterator[tuple[Known, list[str]]]:
    """Yield what can be built, with all that a `type` may say to mean it."""
    checker = Checker(keep=True)
    meant: dict[int, tuple[Known, list[str]]] = {}
    for ref in sorted(_refs(registry)):
        try:
            known = checker.load(registry, ref)
        except (EntryError, DuplicateNameError, UnknownNameError):
            continue
        meant.setdefault(id(known.entry), (known, []))[1].append(ref)
    yield from meant.values()


def _refs(registry: Registry[Any]) -> frozenset[str]:
    """Return every name and alias, alone and with each of its versions."""
    return frozenset(registry._catalogue.refs())  # noqa: SLF001 - the two are one mechanism
