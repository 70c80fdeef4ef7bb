"""Check plain arguments against annotations with pydantic, without changing what a caller passed alive."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import clip, closest, meant
from mlkit.registry._plain import ATOMS, is_plain, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlkit.registry._plain import Path

__all__ = ["Checked", "Mismatch", "Validator", "exact_types"]

_LISTED = 256  # a flag of more bits is described by its bounds
_PYDANTIC = "pydantic_core._pydantic_core"
_NAMES = {
    "bool_type": "bool",
    "bytes_type": "bytes",
    "dict_type": "a mapping",
    "extra_forbidden": "nothing of that name",
    "float_type": "float",
    "int_type": "int",
    "list_type": "a list",
    "none_required": "None",
    "string_type": "str",
    "unexpected_keyword_argument": "nothing of that name",
}


class Mismatch(NamedTuple):
    """An argument that does not fit its annotation."""

    path: Path
    message: str
    near: list[str]  # texts that the annotation takes, and that were perhaps meant


class Checked(NamedTuple):
    """The outcome of a check."""

    arguments: dict[str, Any]
    made: dict[str, Any]
    mismatches: list[Mismatch]


class Validator:
    """Checks arguments by name. Names without an annotation pass as they are.

    Made with the plan of an entry, and compiled by pydantic when it is first used.
    """

    __slots__ = ("_annotations", "_error", "_schema")

    def __init__(self, annotations: dict[str, Any]) -> None:
        self._annotations = annotations
        self._schema: Any = None
        self._error: type[Exception] = Exception  # pydantic's, once there is a schema

    def check(self, arguments: dict[str, Any], *, keep: bool = False) -> Checked:
        """Return what to call the factory with, what pydantic made of it, and what is wrong with it.

        Types are not guessed at: `"64"` is no int, and True is none either. What JSON has no form for may be given in
        the form it has in JSON: a path, date or enum member as text, a tuple as a list, an int where a float is meant.

        Args:
            arguments: By name.
            keep: Whether a value that fits is handed on as the very object, even if pydantic made an equal one.
        """
        annotations = self._annotations
        given = {name: arguments[name] for name in arguments if name in annotations}
        if not given:
            return Checked(arguments, {}, [])
        schema = self._schema or self._compile()
        try:
            made = schema.validate_python(given, strict=True)
        except self._error as error:
            return self._one_by_one(schema, arguments, given, _rows(error), keep=keep)
        result = arguments.copy()
        for name, value in made.items():
            old = given[name]
            plain = value is old or type(old) in ATOMS
            result[name] = value if plain else _kept(old, value, keep=keep)
        return Checked(result, made, [])

    def _one_by_one(
        self,
        schema: Any,
        arguments: dict[str, Any],
        given: dict[str, Any],
        rows: list[Any],
        *,
        keep: bool,
    ) -> Checked:
        """Accept what only failed for want of a JSON form, and collect the rest."""
        result, everything, mismatches = dict(arguments), {}, list[Mismatch]()
        failed = {row["loc"][0] for row in rows}
        for name, value in given.items():
            own = [row for row in rows if row["loc"][0] == name]
            try:
                if name not in failed:
                    made = schema.validate_python({name: value}, strict=True)
                elif is_plain(value):
                    made = self._as_json(schema, name, value)
                else:
                    mismatches += _mismatches(value, own)
                    continue
            except self._error as error:
                later = _rows(error)
                # Where a live object is wanted, or what was made is no JSON to pydantic (half a surrogate pair), it
                # speaks of its own doings; the first verdict is the one about the value.
                odd = any(row["type"] in {"needs_python_object", "json_invalid"} for row in later)
                mismatches += _mismatches(value, own if odd else later)
                continue
            everything[name] = made[name]
            result[name] = made[name] if name in failed else _kept(value, made[name], keep=keep)
        return Checked(result, everything, mismatches)

    def _as_json(self, schema: Any, name: str, value: Any) -> Any:
        """Check *value* as the JSON text of it; to JSON, 8.0 and 8 are one number."""
        import json

        try:
            return schema.validate_json(json.dumps({name: value}), strict=True)
        except self._error:
            whole = _whole(value)
            if whole is value:
                raise
            try:
                return schema.validate_json(json.dumps({name: whole}), strict=True)
            except self._error:
                pass
            raise

    def json_schema(self, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the JSON Schema of each argument, and the definitions they refer to."""
        if not self._annotations:
            return {}, {}
        schema = _compile(self._annotations).json_schema(
            ref_template=ref_template, schema_generator=_generator()
        )
        return schema["properties"], schema.get("$defs", {})

    def _compile(self) -> Any:
        # Two threads may both do this, to the same effect; a lock could be held by a third one at a fork.
        from pydantic_core import ValidationError

        self._error = ValidationError
        self._schema = schema = _compile(self._annotations).validator
        return schema


def exact_types(annotation: Any) -> frozenset[type]:
    """Return the built-in types of which every value fits *annotation* as it is, without asking pydantic.

    An int fits `float` too, but not as it is.
    """
    import types
    from typing import Union, get_args, get_origin

    if annotation is Any or annotation is object:
        return ATOMS
    if annotation is None:
        return frozenset({type(None)})
    if isinstance(annotation, type):
        return ATOMS & {annotation}
    if get_origin(annotation) in {Union, types.UnionType}:
        return frozenset().union(*map(exact_types, get_args(annotation)))
    return frozenset()


def _whole(value: Any) -> Any:
    """Return *value* with integers for floats that are whole; *value* itself if there are none."""
    kind = type(value)
    if kind is float:
        return int(value) if value.is_integer() else value
    if kind is list:
        made = [_whole(item) for item in value]
        return value if all(a is b for a, b in zip(made, value, strict=True)) else made
    if kind is dict:
        items = {key: _whole(item) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in value) else items
    return value


def _compile(annotations: dict[str, Any]) -> Any:
    try:
        return _adapter(annotations)
    except Exception:  # noqa: BLE001 - pydantic has a dozen ways to say that it cannot; find out which it means
        usable = {name: _usable(annotation) for name, annotation in annotations.items()}
        return _adapter(usable)


def _usable(annotation: Any) -> Any:
    try:
        _adapter({"it": annotation})
    except Exception:  # noqa: BLE001 - what pydantic has no schema for is not checked
        return Any
    return annotation


def _adapter(annotations: dict[str, Any]) -> Any:
    from pydantic import ConfigDict, TypeAdapter, with_config
    from typing_extensions import TypedDict  # pydantic refuses typing's own before Python 3.12

    from mlkit.registry._checkable import checkable

    annotations = {name: checkable(annotation) for name, annotation in annotations.items()}
    # Of typed dictionaries and dataclasses, too, a name that they do not have is a slip; a model says that itself.
    config: ConfigDict = {"strict": True, "arbitrary_types_allowed": True, "extra": "forbid"}
    make: Any = TypedDict  # mypy wants a literal here
    adapter = TypeAdapter(with_config(config)(make("Arguments", annotations, total=False)))
    if not adapter.pydantic_complete:  # a class it refers to is not defined
        raise TypeError("incomplete")
    return adapter


@functools.cache
def _generator() -> Any:
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        """Pydantic's, where it says what is accepted."""

        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:  # noqa: ARG002
            return {"not": {}}  # only a live object will do

        def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
            return False  # it would only repeat the name

        def is_subclass_schema(self, schema: Any) -> dict[str, Any]:  # noqa: ARG002 - as above
            return {"not": {}}

        def enum_schema(self, schema: Any) -> dict[str, Any]:
            return _of_flag(schema["cls"], super().enum_schema(schema))

        def set_schema(self, schema: Any) -> dict[str, Any]:
            return _of_set(super().set_schema(schema))

        def frozenset_schema(self, schema: Any) -> dict[str, Any]:
            return _of_set(super().frozenset_schema(schema))

        def named_tuple_schema(self, schema: Any) -> dict[str, Any]:
            names = [field["name"] for field in schema["fields"]]
            return _also_by_name(super().named_tuple_schema(schema), names)

    return Generator


def _also_by_name(listed: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the schema of a named tuple: a list of its parts, or a mapping of their names to them."""
    named = {
        "type": "object",
        "properties": dict(zip(names, listed.get("prefixItems", ()), strict=True)),
        "required": names[: listed.get("minItems", 0)],
        "additionalProperties": False,
    }
    return {"anyOf": [listed, named]}


def _of_flag(kind: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an enumeration: a flag is any of its members together, or none of them."""
    from enum import Flag

    if not issubclass(kind, Flag):
        return schema
    mask = functools.reduce(int.__or__, [member.value for member in kind], 0)
    made = {key: value for key, value in schema.items() if key != "enum"}
    try:
        kind(1 << mask.bit_length())
    except ValueError:  # it has no members but its own
        if mask < _LISTED:
            return made | {"enum": [value for value in range(mask + 1) if not value & ~mask]}
        return made | {"minimum": 0, "maximum": mask}
    return made | {"minimum": 0, "maximum": (1 << 63) - 1}  # of the numbers that pydantic has


def _of_set(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a set: a list with a value twice makes one without it; a list or mapping cannot be in one."""
    made = {key: value for key, value in schema.items() if key != "uniqueItems"}
    if not made.get("items"):
        made["items"] = {"type": ["string", "number", "boolean", "null"]}
    return made


def _kept(value: Any, made: Any, *, keep: bool) -> Any:
    """Return which of two to hand on: what was given, or what pydantic made of it."""
    if made is value or type(value) in ATOMS:
        return made
    if type(made).__module__ == _PYDANTIC:
        return value  # made is a view of an iterable, good for one reading
    if not keep:
        return made
    try:
        return value if bool(made == value) else made
    except Exception:  # noqa: BLE001 - a foreign `==` may do anything
        return made


def _rows(error: Any) -> list[Any]:
    rows: list[Any] = error.errors(include_url=False)
    return rows


def _mismatches(value: Any, rows: Iterable[Any]) -> list[Mismatch]:
    """Put pydantic's rows, one for each branch of a union, together by the place in the data they speak of."""
    places: dict[Path, list[Any]] = {}
    inputs: dict[Path, Any] = {}
    missing: list[Mismatch] = []
    for row in rows:
        path, found = _walk(value, row["loc"])
        if row["type"] == "missing":  # a field of a model; what is there is its whole mapping
            name = row["loc"][-1]
            what = f"a value for {name!r}" if isinstance(name, str) else f"an item {name}"
            missing.append(Mismatch((*path, name), f"{what} is needed", []))
            continue
        inputs[path] = row["loc"][-2] if row["loc"][-1] == "[key]" else found
        places.setdefault(path, []).append(row)
    return missing + [_mismatch(path, inputs[path], here) for path, here in places.items()]


def _mismatch(path: Path, value: Any, rows: list[Any]) -> Mismatch:
    says: list[str] = []
    options: list[str] = []
    for row in rows:
        text = _says(row)
        if says:
            text = text.removeprefix("expected ")
        if text not in says and f"expected {text}" not in says:
            says.append(text)
        if row["type"] in {"literal_error", "enum"}:
            options += re.findall(r"'((?:[^'\\]|\\.)*)'", row["ctx"]["expected"])
    near = closest(value, options) if isinstance(value, str) else []
    message = f"{clip(' or '.join(says), 300)}, got {shown(value)}{meant(near)}"
    return Mismatch(path, message, near)


def _says(row: Any) -> str:
    name = _NAMES.get(row["type"])
    if name is not None:
        return f"expected {name}"
    if row["type"] == "sequence_str" or row.get("ctx") == {"class": "Sequence"}:
        return "expected a list"
    message: str = row["msg"]
    for start in ("Input should be ", "Value error, ", "Assertion failed, "):
        if message.startswith(start):
            rest = message.removeprefix(start)
            return f"expected {rest}" if start.startswith("Input") else rest
    return message[:1].lower() + message[1:]


def _walk(value: Any, loc: tuple[Any, ...]) -> tuple[Path, Any]:
    """Follow *loc* as long as it leads into the data; then it names branches of a union or validators."""
    path: list[str | int] = [loc[0]]
    for step in loc[1:]:
        try:
            inner = value[step] if isinstance(value, list | tuple | dict) else None
        except (LookupError, TypeError):
            break
        if inner is None:
            break
        value = inner
        path.append(step)
    return tuple(path), value
