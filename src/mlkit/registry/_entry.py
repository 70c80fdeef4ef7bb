"""What a registry keeps under one name and version: the public `Entry` and the private `Record` around it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self, final

from mlkit.errors import ConfigurationError
from mlkit.registry._owner import same_definition, target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Migration = Callable[[dict[str, Any]], Mapping[str, Any]]

__all__ = [
    "MAX_NAME",
    "PLAIN",
    "Entry",
    "Frozen",
    "Record",
    "Said",
    "check_name",
    "is_target",
    "parse_ref",
    "same_owner",
    "texts",
]

MAX_NAME = 200  # characters
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
        requires: What to install for the target to work, beyond its own package.
        deprecated: What to use instead, or None if it is not deprecated.
        replacement: The name, or `name@N`, that takes its place; None if none was named.
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
        "replacement",
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
    replacement: str | None
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
        replacement: str | None = None,
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
        put(self, "replacement", replacement)
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


class Said(NamedTuple):
    """What was said about an entry besides its name, checked; the defaults are those of `Registry.register`."""

    version: int = 1
    aliases: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    meta: Mapping[str, Any] = MappingProxyType({})
    requires: tuple[str, ...] = ()
    deprecated: str | None = None
    replacement: str | None = None
    migrate: Migration | None = None
    extra: bool = False
    when: Callable[[Any], bool | str] | None = None
    priority: float = 0

    def without(self, name: str) -> Said:
        """Return this without the alias that is the name itself, which says nothing."""
        if name not in self.aliases:
            return self
        return self._replace(aliases=tuple(alias for alias in self.aliases if alias != name))

    def over(self, earlier: Said) -> Said:
        """Return both together: where this one says nothing of its own, *earlier* holds."""
        return Said(
            self.version,
            tuple(dict.fromkeys((*earlier.aliases, *self.aliases))),
            earlier.tags | self.tags,
            MappingProxyType({**earlier.meta, **self.meta}),
            tuple(dict.fromkeys((*earlier.requires, *self.requires))),
            self.deprecated if self.deprecated is not None else earlier.deprecated,
            self.replacement if self.replacement is not None else earlier.replacement,
            self.migrate if self.migrate is not None else earlier.migrate,
            self.extra or earlier.extra,
            self.when if self.when is not None else earlier.when,
            self.priority or earlier.priority,
        )


PLAIN = Said()


class Record:
    """One version of one name, and what only the registry needs of it.

    Registering makes one of these and little else: a hundred thousand of them must be cheap, so that most attributes
    are the defaults of the class, and the public `Entry` is made when somebody first looks at it.

    Attributes:
        name: The name.
        said: What else was said about it.
        target: Where a lazy factory is; empty for one that was in memory when it was registered.
        source: Who registered it: a module and a line, or the words for an installed distribution.
        distribution: The installed distribution that declares it; empty for what code registered.
        factory: The object itself, None until a lazy target is imported.
        ready: The factory as it is called, with the check of its result if it needs one.
        claims: What else installed distributions declare under the same name and version.
        plan: How `build` calls the factory; made on first use.
    """

    said = PLAIN
    target = ""
    distribution = ""
    imported = True
    claims: tuple[Record, ...] = ()
    plan: Any = None
    _entry: Entry | None = None

    def __init__(
        self,
        name: str,
        source: tuple[str, int] | str,
        factory: Callable[..., Any] | None = None,
        ready: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.source, self.factory, self.ready = name, source, factory, ready

    @property
    def entry(self) -> Entry:
        """What the user sees of it."""
        entry = self._entry
        if entry is None:
            said, source = self.said, self.source
            entry = self._entry = Entry(
                self.name,
                said.version,
                self.target or target_of(self.factory),
                source if isinstance(source, str) else f"{source[0]}:{source[1]}",
                aliases=said.aliases,
                tags=said.tags,
                meta=said.meta,
                requires=said.requires,
                deprecated=said.deprecated,
                replacement=said.replacement,
                extra=said.extra,
                priority=said.priority,
                imported=self.imported,
            )
        return entry

    @property
    def described(self) -> str:
        """Who it is and where it was registered, for a message."""
        return f"{self.entry.target} ({self.entry.source})"

    def inherit(self, said: Said, source: tuple[str, int] | str, distribution: str) -> None:
        """Take over what was said, and who said it, where this was declared."""
        self.said, self.source, self.distribution = said, source, distribution
        self._entry = None  # made anew when somebody looks

    def stands_for(self, entry: Entry) -> None:
        """Show *entry* as the public part: this record is called in its place, and takes what its signature takes."""
        state = {slot: getattr(entry, slot) for slot in Entry.__slots__}
        self._entry = Entry(**{**state, "extra": True})


def same_owner(first: Record, second: Record) -> bool:
    """Return whether *second* is what *first* is, registered again, so that it may take its place."""
    if first.target or second.target:
        return _home(first) == _home(second)
    return same_definition(first.factory, second.factory)


def _home(record: Record) -> str:
    return record.target or target_of(record.factory)


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
    if type(name) is str and name.isidentifier() and len(name) <= MAX_NAME:
        return name
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MAX_NAME
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


def is_target(target: str) -> bool:
    """Return whether *target* reads `package.module:attribute`."""
    module, _, attribute = target.partition(":")
    return all(part.isidentifier() for whole in (module, attribute) for part in whole.split("."))
