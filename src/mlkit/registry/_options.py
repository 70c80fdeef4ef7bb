"""From what is said when something is registered to its record, checked."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError, EntryError
from mlkit.registry._entry import Entry, Record, check_name, texts
from mlkit.registry._target import Base, base_name, checked, owner_of, refuse_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["NOTHING", "check_base", "imported_record", "lazy_record"]

NOTHING: Mapping[str, Any] = MappingProxyType({})
_NO_TAGS: frozenset[str] = frozenset()


def imported_record(
    registry: str, base: Base, factory: Any, *, name: str | None, source: str, **options: Any
) -> Record:
    """Return the record of a class or function that is in memory.

    Raises:
        ConfigurationError: If it, or anything said about it, is not what it must be.
    """
    where = f"{registry}.register"
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
    entry, when = _describe(where, name, target=target, source=source, imported=True, **options)
    try:
        ready = checked(registry, entry, factory, base)
    except EntryError:
        raise ConfigurationError(
            f"{where}(factory)", factory, f"a subclass of {base_name(base)}, or a function"
        ) from None
    _check_return(where, factory, base)
    return Record(entry, owner, factory=factory, ready=ready, when=when)


def lazy_record(registry: str, target: str, *, name: str, source: str, **options: Any) -> Record:
    """Return the record of what is imported when it is first used.

    Raises:
        ConfigurationError: If anything said about it is not what it must be.
    """
    where = f"{registry}.lazy"
    if not isinstance(target, str) or not _is_target(target):
        raise ConfigurationError(f"{where}(target)", target, "'package.module:attribute'")
    entry, when = _describe(where, name, target=target, source=source, **options)
    return Record(entry, target, when=when)


def _is_target(target: str) -> bool:
    module, _, attribute = target.partition(":")
    return all(part.isidentifier() for whole in (module, attribute) for part in whole.split("."))


def _describe(
    where: str,
    name: str,
    *,
    target: str,
    source: str,
    imported: bool = False,
    version: int,
    aliases: Iterable[str],
    tags: Iterable[str],
    meta: Mapping[str, Any],
    requires: Iterable[str],
    deprecated: str | None,
    extra: bool,
    when: Callable[[Any], bool | str] | None,
    priority: float,
) -> tuple[Entry, Callable[[Any], bool | str] | None]:
    """Check what was said about an entry; *where* is the call, for messages: `"models.register"`."""
    if (
        type(name) is not str or not name.isidentifier() or len(name) > 200
    ):  # the common case, without a call
        name = check_name(f"{where}(name)", name)
    if type(version) is not int or not 1 <= version < 10**9:
        raise ConfigurationError(f"{where}(version=...)", version, "an integer >= 1")
    if type(priority) not in {int, float} or priority != priority:  # noqa: PLR0124 - NaN has no rank
        raise ConfigurationError(f"{where}(priority=...)", priority, "a number")
    if deprecated is not None and (not isinstance(deprecated, str) or not deprecated):
        raise ConfigurationError(
            f"{where}(deprecated=...)", deprecated, "text that says what to use instead"
        )
    if extra is not True and extra is not False:
        raise ConfigurationError(f"{where}(extra=...)", extra, "True or False")
    if when is not None and not callable(when):
        raise ConfigurationError(f"{where}(when=...)", when, "a callable of the context")
    if aliases:
        aliases = texts(f"{where}(aliases=...)", aliases)
        for alias in aliases:
            check_name(f"{where}(aliases=...)", alias)
        aliases = dict.fromkeys(alias for alias in aliases if alias != name)
    if meta is not NOTHING:
        meta = _check_meta(where, meta)
    entry = Entry(
        name,
        version,
        target,
        source,
        aliases=tuple(aliases),
        tags=frozenset(texts(f"{where}(tags=...)", tags)) if tags else _NO_TAGS,
        meta=meta,
        requires=texts(f"{where}(requires=...)", requires) if requires else (),
        deprecated=deprecated,
        extra=extra,
        priority=priority,
        imported=imported,
    )
    return entry, when


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


def _check_return(where: str, factory: Any, base: Base) -> None:
    """Refuse a function whose annotation says that it never returns what the registry holds."""
    if base is object or isinstance(factory, type):
        return
    returns = getattr(factory, "__annotations__", {}).get("return", base)
    if returns is None or (isinstance(returns, type) and _never(returns, base)):
        raise ConfigurationError(
            f"{where}(factory)",
            factory,
            f"a function that returns a {base_name(base)}",
        )


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
