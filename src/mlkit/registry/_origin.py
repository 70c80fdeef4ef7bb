"""Which modules registered the names in a spec, so that another process can import them before it builds."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit.registry._registry import Registry

__all__ = ["Origins", "note", "origins_of"]

_registries: weakref.WeakValueDictionary[int, Registry[Any]] = weakref.WeakValueDictionary()
_MAIN = "__main__"


def note(registry: Registry[Any]) -> None:
    """Remember that *registry* exists, for as long as it does."""
    _registries[id(registry)] = registry


class Origins:
    """The modules that registered names, as the process knew them that pickled a spec.

    Only a pickle can make one: data has no way to name a module.

    Args:
        modules: Names of modules by name of a registry and name of an entry.
    """

    __slots__ = ("modules",)

    def __init__(self, modules: dict[tuple[str, str], tuple[str, ...]]) -> None:
        self.modules = modules

    def fetch(self, registry: str, ref: str) -> None:
        """Import what registered *ref*, unless it is imported.

        A name that is there may have more versions elsewhere, so this comes before the look-up. What cannot be
        imported is not an error yet: the name may be there all the same.
        """
        for module in self.modules.get((registry, ref.partition("@")[0]), ()):
            if module not in sys.modules:
                from importlib import import_module

                try:
                    import_module(module)
                except ImportError:
                    continue

    def why(self, registry: str, ref: str) -> str:
        """Say why a name is not here though it was in the process that pickled the spec."""
        modules = self.modules.get((registry, ref.partition("@")[0]))
        if not modules:
            return ""
        if _MAIN in modules:
            return (
                "; it was registered in the script or notebook of another process: move it to a module "
                "that this process can import"
            )
        return f"; in another process {', '.join(modules)} registered it, which here does not"


def origins_of(data: dict[str, Any]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the modules in which this process registered the names that *data* may use."""
    refs = {text.partition("@")[0] for text in _texts(data)}
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for reference in _registries.valuerefs():
        registry = reference()
        if registry is None:
            continue
        table = registry._catalogue.table  # noqa: SLF001 - plugins need no help: the other process finds them too
        for ref in refs:
            modules = [record.entry.source.partition(":")[0] for record in table.versions(ref)]
            if modules:
                key = registry.name, ref
                found[key] = tuple(dict.fromkeys([*found.get(key, ()), *modules]))
    return found


def _texts(data: Any) -> Iterator[str]:
    """Yield what may be a name: a nested spec can be a bare one."""
    if type(data) is str:
        yield data
    elif type(data) is list or type(data) is dict:
        for item in data.values() if type(data) is dict else data:
            yield from _texts(item)
