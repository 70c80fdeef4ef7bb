"""The registry: names in, live objects out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    ParamSpec,
    TypeVar,
    Unpack,
    final,
    overload,
)

from mlkit.errors import ConfigurationError
from mlkit.registry._catalogue import Catalogue, warn_deprecated
from mlkit.registry._choice import Choice, choose, ranked
from mlkit.registry._entry import PLAIN, Entry, check_name, parse_ref, texts
from mlkit.registry._listing import listed, natural
from mlkit.registry._options import NOTHING, Options, check_base, imported_record, lazy_record, said
from mlkit.registry._origin import note
from mlkit.registry._override import Override
from mlkit.registry._spec import Spec
from mlkit.registry._target import base_name
from mlkit.telemetry import Counter, register

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from mlkit.registry._entry import Record, Said
    from mlkit.registry._problem import Problem


__all__ = ["Registry"]

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
F = TypeVar("F", bound="Callable[..., Any]")


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
            read when the first name is looked up or listed, and imported only when asked for.

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

    __slots__ = ("__weakref__", "_builds", "_catalogue")

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
        name = check_name("Registry(name)", name)
        base = check_base(base)
        if entry_points is not None and (not isinstance(entry_points, str) or not entry_points):
            raise ConfigurationError(
                "Registry(entry_points=...)", entry_points, "the name of an entry-point group"
            )
        self._catalogue = Catalogue(self, name, base, entry_points)
        self._builds = Counter("registry_builds_total", registry=name)
        register(self._builds)
        note(self)

    @property
    def name(self) -> str:
        """What it holds."""
        return self._catalogue.name

    @property
    def base(self) -> type | tuple[type, ...]:
        """The class, or classes, that everything made is an instance of."""
        return self._catalogue.base

    # --- registering -------------------------------------------------------------------------------------------------

    @overload
    def register(
        self,
        name: F,
        /,
        *,
        replace: bool = False,
        **options: Unpack[Options],
    ) -> F: ...
    @overload
    def register(
        self,
        name: str | None = None,
        *,
        replace: bool = False,
        **options: Unpack[Options],
    ) -> Callable[[F], F]: ...
    def register(
        self,
        name: Any = None,
        *,
        replace: bool = False,
        **options: Unpack[Options],
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
            replacement: The name, or `name@N`, of what to use instead; it makes the entry deprecated.
            migrate: Given the arguments of the entry by name, return those of its replacement. With it, `create` and
                `build` make the replacement where this entry is asked for; `[]` still gives the entry itself.
            extra: Whether a spec may give arguments that only the factory's `**kwargs` takes. They are checked against
                its annotation; a misspelt name is then nobody's to notice.
            when: For `select`: given the context, return True, or a reason why not.
            priority: For `select`: the highest accepted wins.
            replace: Take the name and the aliases even from another owner. An alias that was a name takes the place
                of all its versions.

        Raises:
            ConfigurationError: If an argument is not what it must be, the object cannot be called, is a class outside
                of the registry's base, or has a parameter called `type`.
            DuplicateNameError: If another owner has the name and version, or an alias means something else.
        """
        told = said(f"{self.name}.register", options) if options else PLAIN
        frame = sys._getframe(1)  # noqa: SLF001 - only to say in a message where it was registered
        source = (frame.f_globals.get("__name__", "?"), frame.f_lineno)
        if callable(name):
            return _register(self._catalogue, None, source, told, replace, name)
        # A partial, not a nested function: that would cost a cell for each of the arguments.
        return partial(_register, self._catalogue, name, source, told, replace)

    def lazy(
        self,
        name: str,
        target: str,
        *,
        replace: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Register something that is imported when it is first used.

        Args:
            name: The name.
            target: Where it is: `"package.module:attribute"`.
            version: From 1.
            aliases: Other names for `name`.
            tags: Words to filter a listing by.
            meta: Facts to keep with the entry.
            requires: Distributions it needs, for the message when one is missing.
            deprecated: What to use instead.
            replacement: The name, or `name@N`, of what to use instead.
            migrate: From the arguments of the entry to those of its replacement.
            extra: Whether a spec may give arguments that only the factory's `**kwargs` takes.
            when: For `select`; it is called without importing the target.
            priority: For `select`.
            replace: Take the name and the aliases even from another owner.

        Raises:
            ConfigurationError: If an argument is not what it must be.
            DuplicateNameError: If another owner has the name and version, or an alias means something else.

        Examples:
            >>> models = Registry("models")
            >>> models.lazy("fraction", "fractions:Fraction")
            >>> models.create("fraction", numerator=1, denominator=2)
            Fraction(1, 2)
        """
        told = said(f"{self.name}.lazy", options)
        frame = sys._getframe(1)  # noqa: SLF001 - as above
        source = (frame.f_globals.get("__name__", "?"), frame.f_lineno)
        record = lazy_record(self.name, target, name=name, source=source, said=told)
        self._catalogue.put(record, replace)

    def freeze(self) -> None:
        """Refuse every later `register` and `lazy`: what can be reached is settled.

        Call it when the program has imported what it needs, so that nothing it loads afterwards adds a name. What
        plugins declare is read now, without importing any. A lazy entry or a plugin whose own module registers it, as
        it was declared, still can when it is imported; `override` still works, because it ends. There is no way back.

        Examples:
            >>> models = Registry("models")
            >>> models.freeze()
            >>> models.lazy("late", "mypkg:Late")
            Traceback (most recent call last):
            ...
            mlkit.errors.RegistryFrozenError: registry 'models' is frozen, so 'late' cannot be registered: ...
        """
        self._catalogue.freeze()

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
            ConfigurationError: If *ref* is neither.
            EntryError: If it cannot be imported, or makes something that is not of the registry's base.
            DuplicateNameError: If two installed distributions claim the name.
        """
        catalogue = self._catalogue
        if not catalogue.overriding:
            try:
                factory = catalogue.ready[ref]
            except (KeyError, TypeError):
                # New, or no name at all, for which the slow way has words.
                pass
            else:
                return factory(*args, **kwargs)
        return catalogue.prepare(ref)(*args, **kwargs)

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
                f"{self.name}.build(spec)", spec, "a Spec, a mapping with a 'type', or a name"
            )
        from mlkit.registry._build import check, construct  # what only building needs

        planned, deprecated = check(self, spec)
        for entry, name in deprecated.items():  # once, however often the spec has it
            warn_deprecated(name, entry, stacklevel=3)
        made: T = construct(planned)
        self._builds.add()
        return made

    def select(self, context: Any, /, *, prefer: Sequence[str] = ()) -> Choice[T]:
        """Choose the strategy for a context: the first that accepts it, by preference, priority and name.

        Predicates (`when=`) are asked in that order and no further than the winner; nothing is imported. One that
        raises counts as a refusal, with an event. Deprecated entries take part only if preferred.

        Args:
            context: Anything; it is what the predicates are given.
            prefer: Names to try first, best first; `name@N` takes part as that version.

        Returns:
            The choice; its `factory` imports and returns what was chosen.

        Raises:
            NoCandidateError: If none accepts; with the reason of each.
            UnknownNameError: If a preferred name is not registered.
        """
        catalogue = self._catalogue
        if prefer == ():
            return choose(self, catalogue.candidates(), context, ())
        wished: dict[str, Record] = {}
        for ref in texts(f"{self.name}.select(prefer=...)", prefer):
            record = catalogue.lookup(ref)
            wished.setdefault(record.entry.name, record)
        others = [record for record in catalogue.candidates() if record.name not in wished]
        order = ranked([*wished.values(), *others], list(wished))
        return choose(self, order, context, list(wished))

    def __getitem__(self, ref: str) -> Callable[..., T]:
        """Return the factory of a name, importing it if it is lazy."""
        if not isinstance(ref, str):
            raise ConfigurationError(f"{self.name}[...]", ref, "a name")
        return self._catalogue.factory(ref)

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
            ConfigurationError: If *mapping* is none, or a factory cannot be called.
            EntryError: If it is a class outside of the registry's base.

        Examples:
            >>> models = Registry("models")
            >>> models.lazy("net", "mypkg.nets:Net")
            >>> with models.override(net=dict):
            ...     models.create("net", depth=2)
            {'depth': 2}
        """
        if not isinstance(mapping, Mapping):
            raise ConfigurationError(
                f"{self.name}.override(mapping)", mapping, "a mapping of names to factories"
            )
        return Override(self._catalogue, {**mapping, **factories})

    # --- looking -----------------------------------------------------------------------------------------------------

    def entry(self, ref: str, /) -> Entry:
        """Return what is known about a name, without importing it.

        Args:
            ref: A name, an alias, or `name@N`.

        Raises:
            UnknownNameError: If nothing is registered under it.
            ConfigurationError: If *ref* is no text.
        """
        if not isinstance(ref, str):
            raise ConfigurationError(f"{self.name}.entry(ref)", ref, "a name")
        return self._catalogue.lookup(ref).entry

    def json_schema(self, pattern: str | Iterable[str] = "*", /) -> dict[str, Any]:
        """Return the JSON Schema (draft 2020-12) of what `build` accepts.

        Every entry has a definition, told apart by its `type`; the entries of nested registries are there too. What it
        takes must be known, so this imports them; an entry that cannot be imported is left out. An argument that only
        a live object can be is accepted by nothing. Of dates and the like JSON Schema checks no more than that they are
        text (`format`).

        Args:
            pattern: Shell patterns of the names that may stand at the top, as in `list`.

        Returns:
            A fresh dictionary.

        Raises:
            ConfigurationError: If *pattern* is not what it must be.

        Examples:
            >>> models = Registry("models")
            >>> @models.register("mlp")
            ... def mlp(hidden: int = 64) -> object: ...
            >>> models.json_schema()["$defs"]["models.mlp@1"]["properties"]["hidden"]
            {'type': 'integer', 'default': 64}
        """
        from mlkit.registry._schema import schema_of

        names = listed(
            f"{self.name}.json_schema", self._catalogue.names(), pattern, deprecated=True
        )
        return schema_of(self, names)

    def __contains__(self, ref: object) -> bool:
        parsed = parse_ref(ref) if isinstance(ref, str) else None
        return parsed is not None and self._catalogue.search(*parsed) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted((name for name, _ in self._catalogue.names()), key=natural))

    def __len__(self) -> int:
        return len(self._catalogue.names())

    def __bool__(self) -> bool:
        return True  # an empty registry is still a registry: `registry or default` must not lose it

    def __repr__(self) -> str:
        n_names = self._catalogue.known()
        return f"<Registry {self.name!r} of {base_name(self.base)}, {n_names} names>"

    def __deepcopy__(self, memo: object) -> Registry[T]:
        return self

    def __copy__(self) -> Registry[T]:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"registry {self.name!r} cannot be pickled: a copy would be another registry; import its module instead"
        )

    def problems(self) -> builtins.list[Problem]:
        """Say what is wrong with the installed plugins; none of it stands in the way of the others.

        Every plugin that was not imported yet is imported now, because only that shows whether it works.

        Returns:
            Plugins that cannot be used, by name: broken, in conflict with another distribution, shadowed by what code
            registered, or declared under a name or target that can be none. Empty if all is well.

        Note:
            Nothing is remembered: a plugin that was mended is found well by the next call.
        """
        from mlkit.registry._problem import problems_of

        return problems_of(self._catalogue)

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

        Raises:
            ConfigurationError: If an argument is not what it must be.

        Examples:
            >>> models = Registry("models")
            >>> for depth in (50, 101, 18):
            ...     models.lazy(f"resnet{depth}", "mypkg.resnet:ResNet")
            >>> models.list("resnet*", exclude="*18")
            ['resnet50', 'resnet101']
        """
        return listed(
            f"{self.name}.list",
            self._catalogue.names(),
            pattern,
            exclude=exclude,
            tag=tag,
            where=where,
            versions=versions,
            deprecated=deprecated,
        )


def _register(  # noqa: PLR0917 - a partial has no names
    catalogue: Catalogue,
    name: Any,
    source: tuple[str, int],
    options: Said,
    replace: bool,  # noqa: FBT001 - of a partial, which is called with the factory alone
    factory: F,
) -> F:
    record = imported_record(catalogue.name, catalogue.base, factory, name, source, options)
    catalogue.put(record, replace)
    return factory
