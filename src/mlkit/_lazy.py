"""Public names whose modules load when a name is first asked for, so that a block costs what is used of it."""

from __future__ import annotations

TYPE_CHECKING = False  # every type checker takes it for true
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["lazy"]


def lazy(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package some of whose public names load late (PEP 562).

    A name is kept in the package once found: `__getattr__` is asked at most once for each. To be called where type
    checkers do not look, beside imports that only they see: were `__getattr__` visible to them, they would accept any
    misspelt name.

    Args:
        package: The `__name__` of the package.
        names: Maps a public name to the module within *package* that defines it.

    Returns:
        Two functions for the package's `__getattr__` and `__dir__`. The first raises `AttributeError` with the name
        that was probably meant; the second lists the package's `__all__`.

    Thread safety: as safe as an import.
    """
    import sys

    def __getattr__(name: str) -> object:  # noqa: N807 - what Python calls it
        module = names.get(name)
        own = vars(sys.modules[package])
        if module is not None:
            from importlib import import_module

            value = own[name] = getattr(import_module(f"{package}.{module}"), name)
            return value
        hint = ""
        if not name.startswith("_"):  # what tools probe for (`__path__`, `_repr_html_`) is no slip
            from mlkit._suggest import did_you_mean

            hint = did_you_mean(name, own["__all__"])
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}", name=name)

    def __dir__() -> list[str]:  # noqa: N807
        return list(vars(sys.modules[package])["__all__"])

    return __getattr__, __dir__
