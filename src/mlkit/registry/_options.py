"""From what is said when something is registered to its record, checked."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError, EntryError
from mlkit.registry._entry import (
    MAX_NAME,
    PLAIN,
    Record,
    Said,
    check_name,
    is_target,
    parse_ref,
    texts,
)
from mlkit.registry._target import Base, base_name, checked, qualified, refuse_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlkit.registry._entry import Migration

__all__ = ["NOTHING", "Options", "check_base", "imported_record", "lazy_record", "said"]

NOTHING: Mapping[str, Any] = MappingProxyType({})


def imported_record(  # noqa: PLR0917 - by position: it runs once for each of very many names
    registry: str, base: Base, factory: Any, name: Any, source: tuple[str, int], said: Said
) -> Record:
    """Return the record of a class or function that is in memory.

    Raises:
        ConfigurationError: If it, or its name, is not what it must be.
    """
    if not callable(factory):
        raise ConfigurationError(f"{registry}.register(factory)", factory, "a class or function")
    if name is None:
        name = getattr(factory, "__name__", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(
                f"{registry}.register(name)", name, "a name, because the object has none of its own"
            )
    # The common case of every check comes first and without a call: this runs once for each of very many names.
    if name.__class__ is not str or not name.isidentifier() or len(name) > MAX_NAME:
        name = check_name(f"{registry}.register(name)", name)
    refuse_type(registry, factory)
    ready = factory if base is object else _based(registry, base, factory, name, source)
    record = Record(name, source, factory, ready)
    if said is not PLAIN:
        record.said = said.without(name)
    return record


def _based(
    registry: str, base: Base, factory: Any, name: str, source: tuple[str, int]
) -> Callable[..., Any]:
    """Return *factory* as it is called, or say that it can never make what the registry holds."""
    where = f"{registry}.register(factory)"
    try:
        ready = checked(registry, Record(name, source, factory), factory, base)
    except EntryError:
        raise ConfigurationError(
            where,
            factory,
            f"a subclass of {base_name(base)}, or a function",
            hint=_made_again(factory, base),
        ) from None
    _check_return(where, factory, base)
    return ready


def lazy_record(
    registry: str, target: str, *, name: Any, source: tuple[str, int], said: Said
) -> Record:
    """Return the record of what is imported when it is first used.

    Raises:
        ConfigurationError: If its name or target is not what it must be.
    """
    if not isinstance(target, str) or not is_target(target):
        raise ConfigurationError(f"{registry}.lazy(target)", target, "'package.module:attribute'")
    record = Record(check_name(f"{registry}.lazy(name)", name), source)
    record.target, record.imported = target, False
    if said is not PLAIN:
        record.said = said.without(record.name)
    return record


class Options(TypedDict, total=False):
    """What may be said about an entry when it is registered; what each means is said there."""

    version: int
    aliases: Iterable[str]
    tags: Iterable[str]
    meta: Mapping[str, Any]
    requires: Iterable[str]
    deprecated: str | None
    replacement: str | None
    migrate: Migration | None
    extra: bool
    when: Callable[[Any], bool | str] | None
    priority: float


def said(where: str, options: Options) -> Said:
    """Check what was said about an entry; *where* is the call, for messages: `"models.register"`.

    Raises:
        TypeError: If there is no such option.
        ConfigurationError: If one is not what it must be.
    """
    for name in options:
        if name not in Options.__annotations__:
            near = did_you_mean(name, Options.__annotations__)
            raise TypeError(f"{where}() got an unexpected keyword argument {name!r}{near}")
    return _said(where, **options)


def _said(
    where: str,
    *,
    version: int = 1,
    aliases: Iterable[str] = (),
    tags: Iterable[str] = (),
    meta: Mapping[str, Any] = NOTHING,
    requires: Iterable[str] = (),
    deprecated: str | None = None,
    replacement: str | None = None,
    migrate: Migration | None = None,
    extra: bool = False,
    when: Callable[[Any], bool | str] | None = None,
    priority: float = 0,
) -> Said:
    if type(version) is not int or not 1 <= version < 10**9:
        raise ConfigurationError(f"{where}(version=...)", version, "an integer >= 1")
    if type(priority) not in {int, float} or priority != priority:  # noqa: PLR0124 - NaN has no rank
        raise ConfigurationError(f"{where}(priority=...)", priority, "a number")
    if type(extra) is not bool:
        raise ConfigurationError(f"{where}(extra=...)", extra, "True or False")
    if deprecated is not None and (not isinstance(deprecated, str) or not deprecated):
        raise ConfigurationError(
            f"{where}(deprecated=...)", deprecated, "text that says what to use instead"
        )
    if replacement is not None:
        if not isinstance(replacement, str) or parse_ref(replacement) is None:
            raise ConfigurationError(
                f"{where}(replacement=...)", replacement, "the name or name@N that takes its place"
            )
        deprecated = deprecated or f"use {replacement}"
    _check_functions(where, replacement, migrate, when)
    aliases = texts(f"{where}(aliases=...)", aliases)
    for alias in aliases:
        check_name(f"{where}(aliases=...)", alias)
    return Said(
        version,
        tuple(dict.fromkeys(aliases)),
        frozenset(texts(f"{where}(tags=...)", tags)),
        meta if meta is NOTHING else _check_meta(where, meta),
        texts(f"{where}(requires=...)", requires),
        deprecated,
        replacement,
        migrate,
        extra,
        when,
        priority,
    )


def _check_functions(where: str, replacement: str | None, migrate: Any, when: Any) -> None:
    if when is not None and not callable(when):
        raise ConfigurationError(f"{where}(when=...)", when, "a callable of the context")
    if migrate is None:
        return
    if not callable(migrate):
        raise ConfigurationError(
            f"{where}(migrate=...)", migrate, "a callable from old arguments to new ones"
        )
    if replacement is None:
        raise ConfigurationError(
            f"{where}(migrate=...)", migrate, "replacement=... beside it, which takes the arguments"
        )


def check_base(base: Any) -> Base:
    kinds = base if isinstance(base, tuple) else (base,)
    for kind in kinds:
        if not isinstance(kind, type):
            raise ConfigurationError("Registry(base)", base, "a class or a tuple of classes")
        if getattr(kind, "_is_protocol", False) and not getattr(
            kind, "_is_runtime_protocol", False
        ):
            raise ConfigurationError(
                "Registry(base)",
                base,
                "a class, or a protocol that can be checked",
                hint="decorate the protocol with @typing.runtime_checkable",
            )
    if not kinds:
        raise ConfigurationError("Registry(base)", base, "a class or a tuple of classes")
    found: Base = base
    return found


def _made_again(factory: type, base: Base) -> str:
    """Return what to do where a class of the base's very name is a base of *factory*: a cell that ran once more."""
    names = {qualified(kind) for kind in (base if isinstance(base, tuple) else (base,))}
    again = next((name for name in map(qualified, factory.__mro__) if name in names), None)
    if again is None:
        return ""
    return f"{again} was defined again since the registry was made: make the registry again too"


def _check_return(where: str, factory: Any, base: Base) -> None:
    """Refuse a function whose annotation says that it never returns what the registry holds."""
    if isinstance(factory, type):
        return
    returns = getattr(factory, "__annotations__", {}).get("return", base)
    if returns is None or (isinstance(returns, type) and _never(returns, base)):
        raise ConfigurationError(where, factory, f"a function that returns a {base_name(base)}")


def _check_meta(where: str, meta: Any) -> Mapping[str, Any]:
    from collections.abc import Mapping

    if not isinstance(meta, Mapping) or not all(isinstance(key, str) for key in meta):
        raise ConfigurationError(f"{where}(meta=...)", meta, "a mapping with text as keys")
    return MappingProxyType(dict(meta))


def _never(returns: type, base: Base) -> bool:
    """Return whether what a function says it returns can never be a *base*."""
    try:
        if issubclass(returns, base):
            return False
        kinds = base if isinstance(base, tuple) else (base,)
        return not any(issubclass(kind, returns) for kind in kinds)
    except TypeError:
        return False
