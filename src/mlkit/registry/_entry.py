"""What a registry keeps under one name and version: the public `Entry` and the private `Record` around it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Self, final

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Entry", "Frozen", "Record", "check_name", "parse_ref", "texts"]

_FORBIDDEN = frozenset("@*?[]")


class Frozen:
    """Base of the immutable values of this package; a frozen dataclass would cost more to import than all of them."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: {name!r} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: {name!r} cannot be deleted")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


@final
class Entry(Frozen):
    """What is known about one version of one name, without importing what it stands for.

    Made by a registry; read with `registry.entry(ref)`. Immutable, so it may be shared between threads; picklable if
    what is in `meta` is.

    Attributes:
        name: The name it is registered under.
        version: Its version, from 1.
        target: Where the factory is defined, `"module:qualname"`.
        source: Who registered it: `"module:line"`, or the installed distribution.
        aliases: Other names for the same thing.
        tags: Words to filter by.
        meta: Facts about it, read-only.
        requires: Distributions that the target needs beyond those of its own package.
        deprecated: What to use instead, or None if it is not deprecated.
        extra: Whether a spec may give arguments that only the `**kwargs` of the factory takes.
        priority: Its rank among strategies; the highest is tried first.
        imported: Whether the factory was in memory when this entry was registered.

    Examples:
        >>> from mlkit.registry import Registry
        >>> models = Registry("models")
        >>> models.lazy("vit", "mypkg.vit:ViT", version=2, tags=["vision"])
        >>> models.entry("vit")
        <Entry vit@2 -> mypkg.vit:ViT>
    """

    __slots__ = (
        "aliases",
        "deprecated",
        "extra",
        "imported",
        "meta",
        "name",
        "priority",
        "requires",
        "source",
        "tags",
        "target",
        "version",
    )

    name: str
    version: int
    target: str
    source: str
    aliases: tuple[str, ...]
    tags: frozenset[str]
    meta: Mapping[str, Any]
    requires: tuple[str, ...]
    deprecated: str | None
    extra: bool
    priority: float
    imported: bool

    def __init__(
        self,
        name: str,
        version: int,
        target: str,
        source: str,
        *,
        aliases: tuple[str, ...] = (),
        tags: frozenset[str] = frozenset(),
        meta: Mapping[str, Any] = MappingProxyType({}),
        requires: tuple[str, ...] = (),
        deprecated: str | None = None,
        extra: bool = False,
        priority: float = 0,
        imported: bool = False,
    ) -> None:
        put = object.__setattr__
        put(self, "name", name)
        put(self, "version", version)
        put(self, "target", target)
        put(self, "source", source)
        put(self, "aliases", aliases)
        put(self, "tags", tags)
        put(self, "meta", meta)
        put(self, "requires", requires)
        put(self, "deprecated", deprecated)
        put(self, "extra", extra)
        put(self, "priority", priority)
        put(self, "imported", imported)

    @property
    def ref(self) -> str:
        """The name with its version, `"resnet@2"`: what `create`, `build` and `[]` take to mean exactly this entry."""
        return f"{self.name}@{self.version}"

    def __repr__(self) -> str:
        return f"<Entry {self.ref} -> {self.target}>"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {slot: getattr(self, slot) for slot in self.__slots__}
        return _restore, ({**state, "meta": dict(self.meta)},)


def _restore(state: dict[str, Any]) -> Entry:
    return Entry(**{**state, "meta": MappingProxyType(state["meta"])})


class Record:
    """An entry and what only the registry needs of it.

    Attributes:
        entry: The public part.
        owner: Who may replace it silently: the definition that registered it.
        factory: The object itself, None until a lazy target is imported.
        ready: The factory as it is called, with the check of its result if it needs one.
        when: The predicate of a strategy.
        conflict: Another owner of the same name and version; set for installed plugins only.
        plan: How `build` calls the factory; made on first use.
    """

    __slots__ = ("conflict", "entry", "factory", "owner", "plan", "ready", "when")

    def __init__(
        self,
        entry: Entry,
        owner: str,
        *,
        factory: Callable[..., Any] | None = None,
        ready: Callable[..., Any] | None = None,
        when: Callable[[Any], bool | str] | None = None,
    ) -> None:
        self.entry, self.owner = entry, owner
        self.factory, self.ready, self.when = factory, ready, when
        self.conflict: Entry | None = None
        self.plan: Any = None


def parse_ref(ref: str) -> tuple[str, int | None] | None:
    """Split `"name@N"` into name and version, `"name"` into name and None; return None for anything else."""
    name, at, version = ref.partition("@")
    if not at:
        return (ref, None) if ref else None
    # isdecimal alone would take digits of every script, and int() any number of them.
    if name and version.isascii() and version.isdecimal() and len(version) < 10:
        number = int(version)
        if number and version[0] != "0":
            return name, number
    return None


def check_name(where: str, name: object) -> str:
    """Return *name* if it can be a name, or say what is wrong with it."""
    if type(name) is str and name.isidentifier() and len(name) <= 200:
        return name
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 200
        or not name.isprintable()
        or any(char.isspace() or char in _FORBIDDEN for char in name)
    ):
        raise ConfigurationError(
            where,
            name,
            "a name of 1 to 200 printable characters without spaces, '@', '*', '?', '[' and ']'",
        )
    return str(name)


def texts(where: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return *values* as a tuple of non-empty strings, or say what is wrong; a lone string is a slip, not letters."""
    if isinstance(values, str | bytes):
        raise ConfigurationError(where, values, "a list of strings", hint=f"pass [{values!r}]")
    try:
        found = tuple(values)
    except TypeError:
        raise ConfigurationError(where, values, "a list of strings") from None
    for value in found:
        if not isinstance(value, str) or not value:
            raise ConfigurationError(where, value, "a list of non-empty strings")
    return found
