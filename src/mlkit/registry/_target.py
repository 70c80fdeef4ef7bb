"""From `"module:attribute"` to a callable that is what the registry holds."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlkit._suggest import article, clip, did_you_mean
from mlkit.errors import ConfigurationError, EntryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.registry._entry import Record

__all__ = ["Base", "base_name", "checked", "load", "qualified", "refuse_type"]

Base = type | tuple[type, ...]


def load(registry: str, record: Record) -> Any:
    """Import the target of *record*.

    Raises:
        EntryError: If it cannot be imported or is not callable. The original error is the cause.
    """
    module_name, _, attribute = record.entry.target.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        raise _wrong(registry, record, _why(record, module_name, error)) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise _wrong(registry, record, _lacks(found, part)) from error
    if not callable(found):
        raise _wrong(registry, record, f"it is {clip(found)}, which cannot be called")
    return found


def _wrong(registry: str, record: Record, reason: str) -> EntryError:
    """Return the error of an entry that cannot be used; of a plugin, it names the distribution."""
    entry = record.entry
    if record.distribution and record.distribution not in reason:
        reason += f" (declared by {entry.source})"
    return EntryError(registry, entry.ref, target=entry.target, reason=reason)


def _lacks(found: Any, part: str) -> str:
    """Return what to say of a module or class that has no attribute *part*."""
    if not isinstance(found, ModuleType):
        return f"{clip(found, 60)} has no attribute {part!r}{did_you_mean(part, dir(found))}"
    if getattr(found.__spec__, "_initializing", False):
        return (
            f"module {found.__name__!r} is still being imported and has no {part!r} yet: a circular import; ask for it "
            f"after the import, in a function"
        )
    near = did_you_mean(part, dir(found))
    return f"module {found.__name__!r} has no attribute {part!r}{near}"


def _why(record: Record, module_name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name
        if missing == module_name or module_name.startswith(missing + "."):
            install = "install its package"
            if record.said.requires:
                from mlkit.registry._problem import pip_install

                install = f"install what it requires with:  {pip_install(*record.said.requires)}  "
            return f"there is no module {missing!r}; registered by {record.entry.source}: {install} or correct the target"
        from mlkit.registry._problem import missing_module  # what only a failing import needs

        return missing_module(record, missing)
    return f"importing it failed: {type(error).__name__}: {clip(str(error), 200)}"


def checked(registry: str, record: Record, factory: Any, base: Base) -> Callable[..., Any]:
    """Return *factory* in the form in which it is called.

    A class is checked once, here. The results of a function are checked one by one, because nothing else can be
    trusted to say what it returns.

    Raises:
        EntryError: If the class is not a subclass of *base*.
    """
    if base is object:
        return factory  # type: ignore[no-any-return]
    if isinstance(factory, type):
        verdict = _is_subclass(factory, base)
        if verdict:
            return factory
        if verdict is False:
            raise _wrong(registry, record, f"the class is not a subclass of {base_name(base)}")

    def call(*args: Any, **kwargs: Any) -> Any:
        made = factory(*args, **kwargs)
        if not isinstance(made, base):
            reason = f"it returned {article(qualified(type(made)))}, not {article(base_name(base))}"
            raise _wrong(registry, record, reason)
        return made

    return call


def _is_subclass(kind: type, base: Base) -> bool | None:
    try:
        return issubclass(kind, base)
    except TypeError:  # a runtime-checkable protocol with attributes can only judge instances
        return None


def base_name(base: Base) -> str:
    """Return the name of a base, or of several."""
    return " or ".join(map(qualified, base)) if isinstance(base, tuple) else qualified(base)


def qualified(kind: type) -> str:
    """Return the full name of a class, without `builtins`."""
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def refuse_type(registry: str, factory: Any) -> None:
    """Refuse a factory with a parameter called `type` as soon as it is registered, where that is cheap to see."""
    function = getattr(factory, "__init__", None) if isinstance(factory, type) else factory
    code = getattr(function, "__code__", None)
    if code is None:
        return
    names = code.co_varnames
    if "type" in names and "type" in names[: code.co_argcount + code.co_kwonlyargcount]:
        raise ConfigurationError(
            f"{registry}.register(factory)",
            factory,
            "a factory without a parameter called 'type', the key that names what to build in a spec",
            hint="rename the parameter",
        )
