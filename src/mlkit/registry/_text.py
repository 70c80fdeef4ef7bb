"""Specs as text: YAML and JSON in and out, and the line and column of every part of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, SpecError, SpecProblem
from mlkit.registry._plain import MAX_VALUES, dotted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    from mlkit.registry._plain import Found, Path

__all__ = ["Source", "dump_json", "dump_yaml", "is_text", "parse", "read", "spec_error"]


MAX_TEXT = 4_000_000  # characters; a spec has at most 100,000 values


class Source(NamedTuple):
    """Where a spec came from, so that a problem in it can be given a line.

    Attributes:
        name: The file, or `"<text>"`.
        text: All of it.
        at: The part of the document that is the spec.
    """

    name: str
    text: str
    at: Path


def is_text(given: str) -> bool:
    """Return whether *given* is YAML or JSON rather than a path or a name."""
    return "\n" in given or ": " in given or given.lstrip()[:1] in {"{", "["}


def read(where: str | PathLike[str]) -> tuple[str, str]:
    """Return the name and the text of what was passed to `Spec.load`."""
    if isinstance(where, str) and is_text(where):
        return "<text>", where
    from pathlib import Path

    wanted = "a file that exists, or YAML or JSON text"
    if where == "":  # as a path it would be the current folder
        raise ConfigurationError("Spec.load(path_or_text)", where, wanted, hint="it is empty")
    try:
        with Path(where).open("rb") as file:
            raw = file.read(MAX_TEXT + 1)
    except (TypeError, ValueError, OSError) as error:
        hint = error.strerror if isinstance(error, OSError) and error.strerror else ""
        raise ConfigurationError("Spec.load(path_or_text)", where, wanted, hint=hint) from error
    try:
        return str(where), raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _syntax(str(where), 1, 1, f"the file is not UTF-8 text: {error.reason}") from None


def parse(name: str, text: str) -> Any:
    """Return the document in *text* as plain data.

    JSON is tried first where it can be JSON, because PyYAML does not read all of it. YAML is read by the core schema
    of YAML 1.2, in which `no` and `on` are text, `1e-3` is a number and `2026-01-02` is text: what JSON would say.

    Raises:
        SpecError: If it is not well-formed, has a key twice, or has tags; with line and column.
    """
    if len(text) > MAX_TEXT:
        raise _syntax(name, 1, 1, f"expected a document of at most {MAX_TEXT:,} characters")
    is_json = name.endswith(".json")
    if is_json or text.lstrip()[:1] == "{":
        try:
            return _parse_json(name, text)
        except SpecError:
            if is_json:
                raise
    return _parse_yaml(name, text)


class _DuplicateKeyError(ValueError):
    pass


def _parse_json(name: str, text: str) -> Any:
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _DuplicateKeyError(f"the key {clip(twice, 60)!r} is there twice")
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise _syntax(name, error.lineno, error.colno, error.msg) from None
    except RecursionError:
        raise _syntax(name, 1, 1, "nested too deeply") from None
    except _DuplicateKeyError as error:
        # Python's parser does not say where, the YAML one does; JSON that it cannot read is rare.
        try:
            _parse_yaml(name, text.replace("\t", " "))
        except SpecError as found:
            if str(error) in str(found):
                raise found from None
        raise _syntax(name, 1, 1, str(error)) from None
    except ValueError as error:  # also a number of more digits than Python converts
        raise _syntax(name, 1, 1, str(error)) from None


def _parse_yaml(name: str, text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())  # noqa: S506 - a SafeLoader without its date, octal and yes/no guesses
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        says = ": ".join(part for part in (error.context, error.problem) if part)
        raise _syntax(name, line, column, says) from None
    except yaml.YAMLError as error:
        raise _syntax(name, 1, 1, str(error)) from None
    except RecursionError:
        raise _syntax(name, 1, 1, "nested too deeply") from None


def _syntax(name: str, line: int, column: int, message: str) -> SpecError:
    return SpecError(
        [SpecProblem("", "syntax", clip(message, 200), source=f"{name}:{line}:{column}")]
    )


_CORE = {
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:merge": (r"^(?:<<)$", "<"),
}


# None is for every other tag, to say that there is no such thing.
_TAGS = (*(f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "seq")), None)


def _reader() -> Any:
    """Return what reads YAML: libyaml where PyYAML was built with it, in a third of the time.

    Its composer is left out: it recurses in C, and a text that is nested deeply enough ends the process.
    """
    import yaml

    if not yaml.__with_libyaml__:
        return yaml.SafeLoader
    from yaml.composer import Composer
    from yaml.constructor import SafeConstructor
    from yaml.cyaml import CParser  # type: ignore[attr-defined]
    from yaml.resolver import Resolver

    class Reader(Composer, CParser, SafeConstructor, Resolver):
        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            for part in (Composer, SafeConstructor, Resolver):
                part.__init__(self)

    return Reader


@functools.cache
def _loader() -> Any:
    import re

    import yaml

    base: Any = _reader()

    class Loader(base):  # type: ignore[misc]  # chosen when it runs
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute
        # Without those of YAML 1.1 that make what is no plain data.
        yaml_constructors = {tag: base.yaml_constructors[tag] for tag in _TAGS}  # noqa: RUF012 - as above

        def flatten_mapping(self, node: Any) -> None:
            # Merged mappings of merged mappings grow exponentially, before anything counts values.
            super().flatten_mapping(node)
            if len(node.value) > MAX_VALUES:
                message = f"expected at most {MAX_VALUES:,} keys"
                raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            message = ""
            if not isinstance(key, yaml.ScalarNode):
                message = "expected text as a key"
            elif (key.tag, key.value) in seen:
                message = f"the key {clip(key.value, 60)!r} is there twice"
            if message:
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add((key.tag, key.value))
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    def scalar(read: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
        def construct(loader: Any, node: Any) -> Any:
            try:
                return read(loader.construct_scalar(node))
            except ValueError as error:  # behind a tag, or of more digits than Python converts
                raise yaml.constructor.ConstructorError(
                    None, None, str(error), node.start_mark
                ) from None

        return construct

    for tag, (pattern, first) in _CORE.items():
        Loader.add_implicit_resolver(tag, re.compile(pattern), list(first))
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    for kind, read in (("bool", _bool), ("int", _int), ("float", _float)):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", scalar(read))
    return Loader


def _bool(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(f"expected true or false, got {clip(text, 60)!r}")
    return text.lower() == "true"


def _int(text: str) -> int:
    return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


@functools.cache
def _dumper() -> Any:
    import re

    import yaml

    class Dumper(yaml.SafeDumper):
        # With the rules of YAML 1.1 as well, so that text like `no` is quoted for readers that still follow them.
        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
            return True

    def text(dumper: Any, value: str) -> Any:
        # PyYAML folds a next-line character in single quotes away; in double quotes it escapes what is not printable.
        style = None if value.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    for tag, (pattern, first) in _CORE.items():
        Dumper.add_implicit_resolver(tag, re.compile(pattern), list(first))
    return Dumper


def dump_yaml(data: dict[str, Any]) -> str:
    """Return *data* as YAML in block style, in its own order."""
    import yaml

    return str(
        yaml.dump(
            data, Dumper=_dumper(), sort_keys=False, allow_unicode=True, default_flow_style=False
        )
    )


def dump_json(data: dict[str, Any]) -> str:
    """Return *data* as indented JSON; infinities and NaN as Python's `json` writes them."""
    import json

    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def spec_error(source: Source | None, problems: Sequence[Found]) -> SpecError:
    """Return one error of all *problems*, with file, line and column if the spec was read from text."""
    if source is None:
        return SpecError([problem for _, problem in problems])
    return SpecError(_place(source, problems))


def _place(source: Source, problems: Sequence[Found]) -> list[SpecProblem]:
    root = _compose(source.text)
    placed = []
    for path, problem in problems:
        full = source.at + path
        mark = _mark(root, full, key=problem.kind == "unknown_argument")
        where = f"{source.name}:{mark.line + 1}:{mark.column + 1}" if mark else source.name
        placed.append(
            SpecProblem(
                dotted(full),
                problem.kind,
                problem.message,
                suggestions=problem.suggestions,
                source=where,
            )
        )
    return placed


def _compose(text: str) -> Any:
    """Return the syntax tree of *text*, or None; only failing specs pay for it."""
    import yaml

    try:
        # In JSON a tab is a space like any other; PyYAML wants none. One for one, so that columns stay.
        return yaml.compose(text.replace("\t", " "), _loader())
    except (yaml.YAMLError, RecursionError):
        return None


def _mark(node: Any, path: Path, *, key: bool) -> Any:
    mark = node.start_mark if node is not None else None
    for step in path:
        value = getattr(node, "value", None)
        if not isinstance(value, list):
            return mark
        if isinstance(step, int):
            if step >= len(value):
                return mark
            node = value[step]
            mark = node.start_mark
        else:
            pair = next((pair for pair in value if getattr(pair[0], "value", None) == step), None)
            if pair is None:
                return mark
            node = pair[1]
            # An empty value has no place of its own worth showing.
            mark = pair[0].start_mark if key or node.value == "" else node.start_mark
    return mark
