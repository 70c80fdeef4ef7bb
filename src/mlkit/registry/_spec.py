"""A spec: plain data that says which registered thing to build, and with what."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, final

from mlkit._suggest import clip, closest, did_you_mean, meant
from mlkit.errors import ConfigurationError
from mlkit.registry._entry import Frozen, parse_ref
from mlkit.registry._plain import copy_plain, problem, shown, steps, take

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from mlkit.registry._origin import Origins
    from mlkit.registry._plain import Found, Path
    from mlkit.registry._registry import Registry
    from mlkit.registry._text import Source

__all__ = ["Spec"]

T = TypeVar("T")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@final
class Spec(Frozen):
    r"""What to build, as plain data: a `type`, which is a name in a registry, and arguments beside it.

    Specs are immutable values: equal if their digests are, hashable, safe to share between threads, and picklable with
    the lines of the file they were read from. Holding a spec runs and imports nothing. A pickled one knows the modules
    that registered its names in the process it comes from; building it imports those of them that it needs, and no
    data can add to them.

    Args:
        data: A mapping with a `type` key; inside it only text, numbers, booleans, None, lists, mappings with text as
            keys, and other specs. It is copied. Tuples become lists.

    Raises:
        SpecError: If there is no `type`, or something in it is not plain data; every such problem at once.

    Examples:
        >>> spec = Spec.load("type: mlp@1\nhidden: 64\n")
        >>> spec.to_dict()
        {'type': 'mlp@1', 'hidden': 64}
        >>> spec == Spec({"hidden": 64, "type": "mlp@1"})
        True
    """

    __slots__ = ("_digest", "_origins", "_plain_data", "_source")

    _plain_data: dict[str, Any]
    _source: Source | None
    _digest: str | None
    _origins: Origins | None  # only of one that was unpickled

    def __init__(self, data: Mapping[str, Any]) -> None:
        from collections.abc import Mapping

        given: Any = data
        if not isinstance(given, Mapping):
            hint = "use Spec.load for a file or text" if isinstance(given, str) else ""
            raise ConfigurationError("Spec(data)", data, "a mapping with a 'type'", hint=hint)
        self._fill(data, None)

    def _fill(self, data: Mapping[str, Any], source: Source | None) -> None:
        copy, problems = take(data)
        if not problems:
            problems = _check_type(copy)
        put = object.__setattr__
        put(self, "_plain_data", copy)
        put(self, "_source", source)
        put(self, "_digest", None)
        put(self, "_origins", None)
        if problems:
            from mlkit.registry._text import spec_error

            raise spec_error(source, problems)

    @classmethod
    def load(cls, path_or_text: str | PathLike[str], *, at: str = "") -> Spec:
        r"""Read a spec from a YAML or JSON file, or from text.

        A string with a line break or `": "` in it, or that begins with `{` or `[`, is text; any other is a path. Text
        is read as JSON would be: `no` is text, `1e-3` a number, a date text. A key that is there twice is an error.

        Args:
            path_or_text: The file (UTF-8), or the text itself.
            at: The part of the document that is the spec, as a dotted path: `"model"`, `"train.models[0]"`.

        Raises:
            ConfigurationError: If the file cannot be read, or *at* is no path.
            SpecError: If it is not well-formed or not a spec; with file, line and column.

        Examples:
            >>> Spec.load("seed: 1\nmodel: {type: mlp, hidden: 32}", at="model")
            Spec({'type': 'mlp', 'hidden': 32})
        """
        from mlkit.registry import _text

        name, text = _text.read(path_or_text)
        path: Path = steps(at) if isinstance(at, str) else ()
        if at != "" and not path:
            raise ConfigurationError(
                "Spec.load(at=...)", at, "a path like 'train.model' or 'models[0]'"
            )
        source = _text.Source(name, text, path)
        data = _select(_text.parse(name, text), source)
        return _make(data, source)

    def dump(self, form: str = "yaml") -> str:
        """Return the spec as text that `load` reads back as an equal spec.

        Args:
            form: `"yaml"` or `"json"`. JSON has no infinities and no NaN: they are written as Python's `json` does.

        Raises:
            ConfigurationError: If *form* is neither.
        """
        from mlkit.registry import _text

        if form == "yaml":
            return _text.dump_yaml(self._plain_data)
        if form == "json":
            return _text.dump_json(self._plain_data)
        near = did_you_mean(form, ["yaml", "json"]) if isinstance(form, str) else ""
        raise ConfigurationError(
            "Spec.dump(form)", form, "'yaml' or 'json'", hint=near.lstrip("; ")
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the data as a fresh dictionary; `Spec(spec.to_dict()) == spec`."""
        copy: dict[str, Any] = copy_plain(self._plain_data)
        return copy

    def resolved(self, registry: Registry[Any]) -> Spec:
        """Return the spec with every version pinned and every default written out.

        What it builds then no longer depends on versions registered, or defaults changed, later. A default that is
        not plain data (an object, a function) is left out.

        Args:
            registry: The registry that would build it.

        Raises:
            SpecError: If the registry could not build it; every problem at once.
            ConfigurationError: If *registry* is not one.
        """
        from mlkit.registry._build import resolve

        _check_registry("Spec.resolved(registry)", registry)
        return Spec(resolve(registry, self))

    def compile(self, registry: Registry[T]) -> Callable[[], T]:
        """Return a function that builds the spec, each time afresh, without checking it again.

        A spec is data and belongs to no registry, so the registry is said here, as in `resolved`. The factories are
        those of now: what is registered or overridden later does not change what the function builds. It may be called
        by several threads; to send it to another process, send the spec and compile it there.

        Args:
            registry: The registry to build with.

        Returns:
            A function without arguments. `spec_of` knows what it built.

        Raises:
            SpecError: If the registry could not build it; every problem at once.
            ConfigurationError: If *registry* is not one.

        Examples:
            >>> from mlkit.registry import Registry
            >>> models = Registry("models")
            >>> models.lazy("fraction", "fractions:Fraction")
            >>> half = Spec({"type": "fraction", "numerator": 1, "denominator": 2}).compile(models)
            >>> half(), half() is half()
            (Fraction(1, 2), False)
        """
        from mlkit.registry._compile import compiled

        _check_registry("Spec.compile(registry)", registry)
        return compiled(registry, self)

    def with_(self, changes: Mapping[str, Any] = _NOTHING, /, **arguments: Any) -> Spec:
        """Return the spec with other values in some places.

        Args:
            changes: New values by dotted path, as problems name it: `"encoder.width"`, `"layers[0].width"`. A last
                name that is not there yet is added.
            **arguments: The same, for arguments of the spec itself.

        Returns:
            A new spec; it has no `source`, because what it says is no longer in that file.

        Raises:
            SpecError: If a path leads nowhere, or a value is not plain data; every problem at once.
            ConfigurationError: If *changes* is not a mapping of paths.

        Examples:
            >>> spec = Spec({"type": "net", "encoder": {"type": "conv", "width": 8}})
            >>> spec.with_({"encoder.width": 16}, depth=3)
            Spec({'type': 'net', 'encoder': {'type': 'conv', 'width': 16}, 'depth': 3})
        """
        from mlkit.registry._change import changed

        made = Spec(changed(self._plain_data, changes, arguments))
        object.__setattr__(made, "_origins", self._origins)
        return made

    @property
    def type(self) -> str:
        """The name of what to build, with its version if that is pinned."""
        name: str = self._plain_data["type"]
        return name

    @property
    def digest(self) -> str:
        """`"sha256:..."` of the data; it does not depend on the order of keys, the process or the Python version."""
        found = self._digest
        if found is None:
            from mlkit._digest import digest

            found = digest(self._plain_data)
            object.__setattr__(self, "_digest", found)
        return found

    @property
    def source(self) -> str | None:
        """The file it was read from, `"<text>"`, or None if it was made from data."""
        return self._source.name if self._source else None

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Spec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Spec({clip(repr(self._plain_data), 200)})"

    def __reduce__(self) -> tuple[Any, ...]:
        from mlkit.registry._origin import origins_of

        known = self._origins.modules if self._origins is not None else {}
        origins = {**known, **origins_of(self._plain_data)}
        return _restore, (self._plain_data, tuple(self._source) if self._source else None, origins)


def _restore(
    data: dict[str, Any],
    source: tuple[str, str, Path] | None,
    origins: dict[tuple[str, str], tuple[str, ...]],
) -> Spec:
    from mlkit.registry._origin import Origins
    from mlkit.registry._text import Source

    spec = _make(data, Source(*source) if source else None)
    if origins:
        object.__setattr__(spec, "_origins", Origins(origins))
    return spec


def _check_registry(where: str, registry: object) -> None:
    from mlkit.registry._registry import Registry

    if not isinstance(registry, Registry):
        raise ConfigurationError(where, registry, "a Registry")


def _make(data: dict[str, Any], source: Source | None) -> Spec:
    spec = Spec.__new__(Spec)
    spec._fill(data, source)  # noqa: SLF001 - the second constructor
    return spec


def _select(document: Any, source: Source) -> dict[str, Any]:
    """Return the part of a document that `at` names."""
    from mlkit.registry._text import spec_error

    found = document
    for depth, step in enumerate(source.at):
        message, near = _absent(found, step)
        if message:
            at = source._replace(at=source.at[:depth])
            raise spec_error(at, [problem((), "value", message, near)])
        found = found[step]
    if not isinstance(found, dict):
        message = f"expected a mapping with a 'type', got {shown(found)}"
        raise spec_error(source, [problem((), "type", message)])
    return found


def _absent(part: Any, step: str | int) -> tuple[str, list[str]]:
    """Return why *part* of a document has no *step*, and what may be meant; an empty text if it has."""
    if isinstance(step, int):
        if isinstance(part, list) and step < len(part):
            return "", []
        return f"there is no item {step} in {shown(part)}", []
    keys = [key for key in part if isinstance(key, str)] if isinstance(part, dict) else []
    near = [] if step in keys else closest(step, keys)
    return ("" if step in keys else f"there is no {step!r}{meant(near)}"), near


def _check_type(data: dict[str, Any]) -> list[Found]:
    if "type" not in data:
        inner = [key for key, value in data.items() if isinstance(value, dict) and "type" in value]
        hint = f"; perhaps the part at={inner[0]!r} is meant" if inner else ""
        return [problem((), "type", f"there is no 'type', the name of what to build{hint}")]
    name = data["type"]
    if not isinstance(name, str) or parse_ref(name) is None:
        message = f"expected a name or 'name@version', got {shown(name)}"
        return [problem(("type",), "type", message)]
    return []
