"""What may be said when something is registered, checked."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError
from mlkit.registry._entry import Entry, check_name, texts
from mlkit.registry._target import Base, base_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["NOTHING", "check_base", "check_return", "describe_entry"]

NOTHING: Mapping[str, Any] = MappingProxyType({})
_NO_TAGS: frozenset[str] = frozenset()


def describe_entry(
    where: str,
    name: str,
    version: int,
    target: str,
    source: str,
    *,
    imported: bool = False,
    aliases: Iterable[str] = (),
    tags: Iterable[str] = (),
    meta: Mapping[str, Any] = NOTHING,
    requires: Iterable[str] = (),
    deprecated: str | None = None,
    when: Callable[[Any], bool | str] | None = None,
    priority: float = 0,
    replace: bool = False,
) -> tuple[Entry, Callable[[Any], bool | str] | None, bool]:
    """Check what was said about an entry; *where* is the call, for messages: `"models.register"`."""
    if (
        type(name) is not str or not name.isidentifier() or len(name) > 200
    ):  # the common case, without a call
        check_name(f"{where}(name)", name)
    if type(version) is not int or not 1 <= version < 10**9:
        raise ConfigurationError(f"{where}(version=...)", version, "an integer >= 1")
    if type(priority) not in {int, float} or priority != priority:  # noqa: PLR0124 - NaN has no rank
        raise ConfigurationError(f"{where}(priority=...)", priority, "a number")
    if deprecated is not None and (not isinstance(deprecated, str) or not deprecated):
        raise ConfigurationError(
            f"{where}(deprecated=...)", deprecated, "text that says what to use instead"
        )
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
        priority=priority,
        imported=imported,
    )
    return entry, when, bool(replace)


def check_return(where: str, factory: Any, base: Base) -> None:
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
