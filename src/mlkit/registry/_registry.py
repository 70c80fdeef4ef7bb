"""The registry: names in, live objects out."""

from __future__ import annotations

import builtins
import os
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, final, overload

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, DuplicateNameError, EntryError, UnknownNameError
from mlkit.registry._choice import Choice, choose, natural
from mlkit.registry._entry import Entry, Record, check_name, parse_ref, texts
from mlkit.registry._options import NOTHING, check_base, check_return, describe_entry
from mlkit.registry._override import Override, overridden
from mlkit.registry._spec import Spec
from mlkit.registry._table import Table, atomic_items, describe
from mlkit.registry._target import base_name, checked, load, owner_of, refuse_type
from mlkit.telemetry import Counter, emit, register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager


__all__ = ["Registry"]

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
F = TypeVar("F", bound="Callable[..., Any]")

# One lock for the writers of all registries, held for a few dictionary updates and never while user code runs.
_lock = threading.Lock()
_OVERRIDE = "override"
_TARGET = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def _new_lock() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it at the fork
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@final
class Registry(Generic[T]):
    """Named factories of one kind of thing, and specs built with them.

    A registry is an object at the top level of a module, which others import. What can be reached through it is what
    code registered: with `register`, with `lazy`, or as an entry point of an installed distribution. Names in data are
    keys of its table and nothing else; no data can make it import or call anything more.

    Thread-safe: readers take no lock, writers a short one; user code never runs under it. Fork-safe. Not picklable,
    because a copy in another process would be another registry: let the other process import the module. A deep copy
    of something that holds a registry holds the same registry.

    Args:
        name: What it holds, in the plural: `"models"`. Used in messages and metrics.
        base: The class, or classes, that everything made must be an instance of; a protocol must be
            `runtime_checkable`.
        entry_points: The group under which installed distributions declare entries, e.g. `"mlkit.models"`; they are
            read on the first miss or listing, and imported only when asked for.

    Raises:
        ConfigurationError: If an argument is not what it must be.

    Examples:
        >>> from typing import Annotated
        >>> encoders = Registry("encoders")
        >>> models = Registry("models")
        >>> @encoders.register("conv")
        ... class Conv:
        ...     def __init__(self, width: int = 8) -> None:
        ...         self.width = width
        >>> @models.register("net", version=2)
        ... class Net:
        ...     def __init__(self, encoder: Annotated[Conv, encoders], depth: int = 18) -> None:
        ...         self.encoder, self.depth = encoder, depth
        >>> net = models.build({"type": "net", "encoder": {"type": "conv", "width": 16}})
        >>> net.encoder.width, net.depth
        (16, 18)
        >>> models.build({"type": "net", "encoder": {"type": "conv", "widht": 16}})
        Traceback (most recent call last):
        ...
        mlkit.errors.SpecError: encoder.widht: conv@1 has no argument 'widht'; did you mean 'width'?
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_builds",
        "_generation",
        "_group",
        "_imports",
        "_name",
        "_overriding",
        "_plugins",
        "_ready",
        "_table",
    )

    @overload
    def __init__(self: Registry[Any], name: str, *, entry_points: str | None = None) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        # The callable is for type checkers: they refuse an abstract class or a protocol as a type[T].
        base: type[T] | tuple[type[T], ...] | Callable[..., T],
        *,
        entry_points: str | None = None,
    ) -> None: ...
    def __init__(self, name: str, base: Any = object, *, entry_points: str | None = None) -> None:
        self._name = check_name("Registry(name)", name)
        self._base = check_base(base)
        if entry_points is not None and (not isinstance(entry_points, str) or not entry_points):
            raise ConfigurationError(
                "Registry(entry_points=...)", entry_points, "the name of an entry-point group"
            )
        self._group = entry_points
        self._table = Table()
        self._plugins: Table | None = None
        self._ready: dict[Any, Callable[..., T]] = {}  # by reference as written, for the next call
        self._generation = 0
        self._overriding = 0
        self._builds = Counter("registry_builds_total", registry=name)
        self._imports = Counter("registry_imports_total", registry=name)
        register(self._builds)
        register(self._imports)

    @property
    def name(self) -> str:
        """What it holds."""
        return self._name

    @property
    def base(self) -> type | tuple[type, ...]:
        """The class, or classes, that everything made is an instance of."""
        return self._base

    # --- registering -------------------------------------------------------------------------------------------------

    @overload
    def register(self, name: F, /) -> F: ...
    @overload
    def register(
        self,
        name: str | None = None,
        *,
        version: int = 1,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        meta: Mapping[str, Any] = ...,
        requires: Iterable[str] = (),
        deprecated: str | None = None,
        when: Callable[[Any], bool | str] | None = None,
        priority: float = 0,
        replace: bool = False,
    ) -> Callable[[F], F]: ...
    def register(
        self,
        name: Any = None,
        *,
        version: int = 1,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        meta: Mapping[str, Any] = NOTHING,
        requires: Iterable[str] = (),
        deprecated: str | None = None,
        when: Callable[[Any], bool | str] | None = None,
        priority: float = 0,
        replace: bool = False,
    ) -> Any:
        """Register a class or function; use as a decorator, which returns what it decorates.

        Running the same definition again (a notebook cell, a reloaded module) replaces what it registered before; a
        definition of another module or name is another owner, and two owners of one name are an error.

        Args:
            name: The name; by default the `__name__` of what is decorated.
            version: From 1; `name@N` asks for one, `name` for the newest that is not deprecated.
            aliases: Other names for `name`, in any version.
            tags: Words to filter a listing by.
            meta: Facts to keep with the entry.
            requires: Distributions it needs, for the message when one is missing.
            deprecated: What to use instead; using the entry then warns (`FutureWarning`), and listings leave it out.
            when: For `select`: given the context, return True, or a reason why not.
            priority: For `select`: the highest accepted wins.
            replace: Take the name even from another owner.

        Raises:
            ConfigurationError: If an argument is not what it must be, the object cannot be called, is a class outside
                of the registry's base, or has a parameter called `type`.
            DuplicateNameError: If another owner has the name and version, or an alias means something else.
        """
        frame = sys._getframe(1)  # noqa: SLF001 - only to say in a message where it was registered
        source = f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}"
        if callable(name):
            self._add(name, name=None, version=1, source=source)
            return name

        def decorate(factory: F) -> F:
            self._add(
                factory,
                name=name,
                version=version,
                source=source,
                aliases=aliases,
                tags=tags,
                meta=meta,
                requires=requires,
                deprecated=deprecated,
                when=when,
                priority=priority,
                replace=replace,
            )
            return factory

        return decorate

    def _add(
        self, factory: Any, *, name: str | None, version: int, source: str, **options: Any
    ) -> None:
        where = f"{self._name}.register"
        if not callable(factory):
            raise ConfigurationError(f"{where}(factory)", factory, "a class or function")
        target, owner = owner_of(factory)
        if name is None:
            name = getattr(factory, "__name__", None)
            if name is None or not name.isidentifier():
                raise ConfigurationError(
                    f"{where}(name)", name, "a name, because the object has none of its own"
                )
        refuse_type(where, factory)
        entry, when, replace = describe_entry(
            where, name, version, target, source, imported=True, **options
        )
        try:
            ready = checked(self._name, entry, factory, self._base)
        except EntryError:
            raise ConfigurationError(
                f"{where}(factory)",
                factory,
                f"a subclass of {base_name(self._base)}, or a function",
            ) from None
        check_return(where, factory, self._base)
        self._put(Record(entry, owner, factory=factory, ready=ready, when=when), replace=replace)

    def lazy(
        self,
        name: str,
        target: str,
        *,
        version: int = 1,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        meta: Mapping[str, Any] = NOTHING,
        requires: Iterable[str] = (),
        deprecated: str | None = None,
        when: Callable[[Any], bool | str] | None = None,
        priority: float = 0,
        replace: bool = False,
    ) -> None:
        """Register something that is imported when it is first used.

        Args:
            name: The name.
            target: Where it is: `"package.module:attribute"`.
            version: As for `register`, and so on.
            aliases: Other names for `name`.
            tags: Words to filter a listing by.
            meta: Facts to keep with the entry.
            requires: Distributions it needs, for the message when one is missing.
            deprecated: What to use instead.
            when: For `select`; it is called without importing the target.
            priority: For `select`.
            replace: Take the name even from another owner.

        Raises:
            ConfigurationError: If an argument is not what it must be.
            DuplicateNameError: If another owner has the name and version, or an alias means something else.

        Examples:
            >>> models = Registry("models")
            >>> models.lazy("fraction", "fractions:Fraction")
            >>> models.create("fraction", numerator=1, denominator=2)
            Fraction(1, 2)
        """
        where = f"{self._name}.lazy"
        if not isinstance(target, str) or not _TARGET.fullmatch(target):
            raise ConfigurationError(f"{where}(target)", target, "'package.module:attribute'")
        frame = sys._getframe(1)  # noqa: SLF001 - only to say in a message where it was registered
        entry, condition, force = describe_entry(
            where,
            name,
            version,
            target,
            f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}",
            aliases=aliases,
            tags=tags,
            meta=meta,
            requires=requires,
            deprecated=deprecated,
            when=when,
            priority=priority,
            replace=replace,
        )
        self._put(Record(entry, target, when=condition), replace=force)

    def _put(self, record: Record, *, replace: bool) -> None:
        entry = record.entry
        with _lock:
            # An installed plugin that registers itself on import stays a plugin: what a name means must not depend on
            # which of its versions happened to be imported first.
            table, plugins = self._table, self._plugins
            if plugins is not None:
                declared = plugins.find(entry.name, entry.version)
                if declared is not None and declared.owner == record.owner:
                    table = plugins
            table.put(self._name, record, replace=replace)
            self._generation += 1
            if self._ready:
                self._ready = {}

    # --- using -------------------------------------------------------------------------------------------------------

    @overload
    def create(self, ref: str, /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    def create(self, ref: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def create(self, ref: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a registered factory with arguments, which are passed on as they are.

        Args:
            ref: A name, `"resnet"` or `"resnet@2"`; or the registered class or function itself, whose own type and
                signature a type checker then knows.
            *args: For the factory.
            **kwargs: For the factory.

        Returns:
            What it made.

        Raises:
            UnknownNameError: If nothing is registered under that name, or *ref* is not registered.
            EntryError: If it cannot be imported, or makes something that is not of the registry's base.
        """
        if not self._overriding:
            try:
                factory = self._ready.get(ref)
            except TypeError:
                factory = None  # not hashable: whatever it is, the slow way has words for it
            if factory is not None:
                return factory(*args, **kwargs)
        return self._prepare(ref)(*args, **kwargs)

    def build(self, spec: Spec | Mapping[str, Any] | str, /) -> T:
        """Build what a spec says, nested specs first.

        The whole spec is checked against the signatures of the factories before any of them runs. A parameter
        annotated `Annotated[X, registry]` (or a list, tuple, text-keyed dict or Optional of that) is built from its own
        `{"type": ...}`, or from a bare name; an object that is already there is passed on. Every other parameter is
        checked by pydantic against its annotation, without guessing: `"64"` is no int. A value that fits is passed on
        as the very object; one that JSON can only say in another way (a path or a date as text, a tuple as a list) is
        converted.

        Args:
            spec: A `Spec`, a mapping with a `type`, or a bare name.

        Returns:
            What was built. `spec_of` returns its resolved spec.

        Raises:
            SpecError: If the spec does not fit; every problem at once, with file, line and column if it was loaded.
            ConfigurationError: If *spec* is none of the three.
        """
        if not isinstance(spec, (str, dict, Spec, Mapping)):
            raise ConfigurationError(
                f"{self._name}.build(spec)", spec, "a Spec, a mapping with a 'type', or a name"
            )
        from mlkit.registry._build import check, construct  # what only building needs

        planned, deprecated = check(self, spec)
        for entry in deprecated:
            self._warn(entry, stacklevel=3)
        made: T = construct(planned)
        self._builds.add()
        return made

    def select(self, context: Any, /, *, prefer: Sequence[str] = ()) -> Choice[T]:
        """Choose the strategy for a context: the first that accepts it, by preference, priority and name.

        Predicates (`when=`) are asked in that order and no further than the winner; nothing is imported. One that
        raises counts as a refusal, with an event. Deprecated entries take part only if preferred.

        Args:
            context: Anything; it is what the predicates are given.
            prefer: Names to try first, best first.

        Returns:
            The choice; its `factory` imports and returns what was chosen.

        Raises:
            NoCandidateError: If none accepts; with the reason of each.
            UnknownNameError: If a preferred name is not registered.
        """
        names = texts(f"{self._name}.select(prefer=...)", prefer)
        wished = [self._lookup(name).entry.name for name in names]
        candidates = []
        for name, versions in self._names():
            record = versions[-1] if len(versions) == 1 else self._lookup(name)
            if record.entry.deprecated is None or name in wished:
                candidates.append(record)
        return choose(self, candidates, context, wished)

    def __getitem__(self, ref: str) -> Callable[..., T]:
        """Return the factory of a name, importing it if it is lazy."""
        if not isinstance(ref, str):
            raise ConfigurationError(f"{self._name}[...]", ref, "a name")
        entry, record = self._find(ref)
        self._load(record)
        if entry.deprecated is not None:
            self._warn(entry, stacklevel=3)
        factory: Callable[..., T] = record.factory  # type: ignore[assignment]
        return factory

    def override(
        self,
        mapping: Mapping[str, Callable[..., Any]] = NOTHING,
        /,
        **factories: Callable[..., Any],
    ) -> AbstractContextManager[None]:
        """Put other factories in place of registered ones for the length of a `with` block.

        It holds in the context of the block (this thread or task, and tasks started in it) and ends with it on any
        exit, wherever its context was copied to. Blocks nest; the innermost wins.

        Args:
            mapping: What to put in place, by name (any version) or `name@N` (only that version).
            **factories: The same, for names that can be written as a keyword.

        Raises:
            UnknownNameError: If a name is not registered: a misspelt override would leave the real thing in place.
            ConfigurationError: If a factory cannot be called.
            EntryError: If it is a class outside of the registry's base.

        Examples:
            >>> models = Registry("models")
            >>> models.lazy("net", "mypkg.nets:Net")
            >>> with models.override(net=dict):
            ...     models.create("net", depth=2)
            {'depth': 2}
        """
        records: dict[tuple[str, int | None], Record] = {}
        for ref, factory in {**mapping, **factories}.items():
            where = f"{self._name}.override({clip(ref, 60)})"
            if not isinstance(ref, str):
                raise ConfigurationError(where, ref, "a name")
            if not callable(factory):
                raise ConfigurationError(where, factory, "a class or function")
            entry = self._lookup(ref).entry
            parsed = parse_ref(ref)
            ready = checked(self._name, entry, factory, self._base)
            records[entry.name, parsed[1] if parsed else None] = Record(
                entry, _OVERRIDE, factory=factory, ready=ready
            )
        return Override(self, records)

    # --- looking -----------------------------------------------------------------------------------------------------

    def entry(self, ref: str, /) -> Entry:
        """Return what is known about a name, without importing it.

        Args:
            ref: A name, an alias, or `name@N`.

        Raises:
            UnknownNameError: If nothing is registered under it.
        """
        if not isinstance(ref, str):
            raise ConfigurationError(f"{self._name}.entry(ref)", ref, "a name")
        return self._lookup(ref).entry

    def __contains__(self, ref: object) -> bool:
        parsed = parse_ref(ref) if isinstance(ref, str) else None
        return parsed is not None and self._search(*parsed) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted((name for name, _ in self._names()), key=natural))

    def __len__(self) -> int:
        return len(self._names())

    def __bool__(self) -> bool:
        return True  # an empty registry is still a registry: `registry or default` must not lose it

    def __repr__(self) -> str:
        return (
            f"<Registry {self._name!r} of {base_name(self._base)}, {len(self._table.names)} names>"
        )

    def __deepcopy__(self, memo: object) -> Registry[T]:
        return self

    def __copy__(self) -> Registry[T]:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"registry {self._name!r} cannot be pickled: a copy would be another registry; import its module instead"
        )

    def list(
        self,
        pattern: str | Iterable[str] = "*",
        /,
        *,
        exclude: str | Iterable[str] = (),
        tag: str | None = None,
        where: Callable[[Entry], bool] | None = None,
        versions: bool = False,
        deprecated: bool = False,
    ) -> builtins.list[str]:
        """List names without importing anything; `net2` comes before `net10`.

        Args:
            pattern: A shell pattern (`*`, `?`, `[...]`), or several of which one must match; case matters.
            exclude: Patterns of names to leave out.
            tag: Only entries with this tag.
            where: Only entries for which this returns true.
            versions: List every version, as `name@N`, instead of names.
            deprecated: List deprecated entries too.

        Returns:
            Names; empty if none match.

        Examples:
            >>> models = Registry("models")
            >>> for depth in (50, 101, 18):
            ...     models.lazy(f"resnet{depth}", "mypkg.resnet:ResNet")
            >>> models.list("resnet*", exclude="*18")
            ['resnet50', 'resnet101']
        """
        from fnmatch import fnmatchcase

        wanted = _patterns(f"{self._name}.list(pattern)", pattern)
        unwanted = _patterns(f"{self._name}.list(exclude=...)", exclude)
        found = []
        for name, records in self._names():
            if not any(fnmatchcase(name, one) for one in wanted):
                continue
            if any(fnmatchcase(name, one) for one in unwanted):
                continue
            fitting = [
                record.entry
                for record in records
                if (deprecated or record.entry.deprecated is None)
                and (tag is None or tag in record.entry.tags)
                and (where is None or where(record.entry))
            ]
            found += [entry.ref for entry in fitting] if versions else [name] * bool(fitting)
        return sorted(found, key=natural)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _names(self) -> builtins.list[tuple[str, tuple[Record, ...]]]:
        """Return every name with its versions; a plugin never adds to a name that code registered."""
        plugins = self._scan()
        found = atomic_items(self._table.names)
        if plugins is not None:
            ours = {name for name, _ in found}
            found += [item for item in atomic_items(plugins.names) if item[0] not in ours]
        return found

    def _search(self, name: str, version: int | None) -> Record | None:
        found = self._table.find(name, version)
        if found is None and self._group is not None:
            plugins = self._scan()
            found = plugins.find(name, version) if plugins is not None else None
        return found

    def _lookup(self, ref: str) -> Record:
        parsed = parse_ref(ref)
        record = self._search(*parsed) if parsed is not None else None
        if record is None:
            raise self._unknown(ref)
        return record

    def _unknown(self, ref: str) -> UnknownNameError:
        name, at, _ = ref.partition("@")
        versions = self._table.versions(name)
        if not versions and self._plugins is not None:
            versions = self._plugins.versions(name)
        if at and versions:
            return UnknownNameError(self._name, ref, [record.entry.ref for record in versions])
        known = [name for name, _ in self._names()] + builtins.list(self._table.aliases.copy())
        hint = "(if it is defined, was the module that registers it imported?)"
        return UnknownNameError(self._name, ref, known, hint=hint)

    def _find(self, ref: str) -> tuple[Entry, Record]:
        """Return the entry of *ref* and the record to use for it, which an override may have put in its place."""
        record = self._lookup(ref)
        return record.entry, overridden(self, record) if self._overriding else record

    def _load(self, record: Record) -> Callable[..., T]:
        """Return the factory of *record* as it is called, importing it if need be."""
        ready = record.ready
        if ready is not None:
            return ready
        entry = record.entry
        if record.conflict is not None:
            other = Record(record.conflict, "")
            raise DuplicateNameError(
                self._name, entry.ref, first=describe(record), second=describe(other)
            )
        try:
            factory = load(self._name, entry)
            made = checked(self._name, entry, factory, self._base)
        except EntryError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else None
            emit("registry.entry.failed", self._name, entry=entry.ref, error=cause)
            raise
        with _lock:
            if record.ready is None:  # of 32 threads that imported it at once, one decides for all
                record.factory, record.ready = factory, made
                self._imports.add()
            return record.ready

    def _prepare(self, ref: Any) -> Callable[..., T]:
        """Return the factory of *ref* as it is called, and remember it for the next call if nothing stands against."""
        seen = self._generation
        if not isinstance(ref, str):
            return self._prepare_handle(ref, seen)
        entry, record = self._find(ref)
        ready = self._load(record)
        if entry.deprecated is not None:
            self._warn(entry, stacklevel=4)
        elif record.owner is not _OVERRIDE:
            self._remember(ref, ready, seen)
        return ready

    def _prepare_handle(self, handle: Any, seen: int) -> Callable[..., T]:
        if not callable(handle):
            raise ConfigurationError(
                f"{self._name}.create(ref)", handle, "a name, or a registered class or function"
            )
        target, _ = owner_of(handle)
        records = [record for _, versions in self._names() for record in versions]
        record = next((record for record in records if record.factory is handle), None)
        if record is None:
            # A lazy entry that was not imported through the registry, or a definition that has since run again.
            record = next((record for record in records if record.entry.target == target), None)
        if record is None:
            raise UnknownNameError(self._name, target, (record.entry.target for record in records))
        stand_in = overridden(self, record) if self._overriding else record
        if stand_in.owner is _OVERRIDE:
            return self._load(stand_in)
        ready = checked(self._name, record.entry, handle, self._base)
        if record.factory is handle:
            self._remember(handle, ready, seen)
        return ready

    def _remember(self, ref: Any, ready: Callable[..., T], seen: int) -> None:
        with _lock:
            if self._generation == seen:
                try:
                    self._ready[ref] = ready
                except TypeError:  # a callable object that cannot be hashed
                    return

    def _scan(self) -> Table | None:
        plugins = self._plugins
        if plugins is None and self._group is not None:
            from mlkit.registry._plugins import scan

            found = scan(self._name, self._group)
            with _lock:
                plugins = self._plugins = self._plugins or found
        return plugins

    def _overridden(self, change: int) -> None:
        with _lock:
            self._overriding += change

    def _warn(self, entry: Entry, *, stacklevel: int) -> None:
        warnings.warn(
            f"{entry.ref} of registry {self._name!r} is deprecated: {entry.deprecated}",
            FutureWarning,
            stacklevel=stacklevel,
        )


def _patterns(where: str, patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else texts(where, patterns)
