"""What a factory says about its parameters: names, kinds, defaults, and annotations as objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.registry._checkable import with_self

if TYPE_CHECKING:
    import inspect

__all__ = ["Unreadable", "annotation_of", "signature_of"]


class Unreadable:
    """In place of an annotation that cannot be evaluated.

    Attributes:
        reason: Why.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def signature_of(factory: Any) -> inspect.Signature | None:
    """Return the signature of *factory*, or None if Python knows none (some classes written in C)."""
    import inspect

    keys = getattr(factory, "__required_keys__", None)
    if keys is not None and isinstance(factory, type):
        return _typed_dict(factory, keys)
    try:
        found = inspect.signature(factory)
    except (TypeError, ValueError):
        return None
    handed_on = isinstance(factory, type) and _says_nothing(found)
    return (_constructor(factory) if handed_on else None) or found


def _says_nothing(signature: inspect.Signature) -> bool:
    kinds = [parameter.kind.name for parameter in signature.parameters.values()]
    return kinds == ["VAR_POSITIONAL", "VAR_KEYWORD"]


def _constructor(factory: type) -> inspect.Signature | None:
    """Return what a class takes whose metaclass only hands arguments on, as that of a singleton does."""
    import inspect

    if type(factory).__call__ is type.__call__:
        return None
    for name in ("__init__", "__new__"):
        made = getattr(factory, name)
        if inspect.isfunction(made):
            found = inspect.signature(made)
            return found.replace(parameters=list(found.parameters.values())[1:])
    return None


def _typed_dict(factory: Any, required: frozenset[str]) -> inspect.Signature:
    import inspect
    import typing

    parameters = []
    for name, hint in typing.get_type_hints(factory, include_extras=True).items():
        kind, needed = hint, name in required
        # Of annotations that are text Python does not see, when it makes the class, which are required.
        while typing.get_origin(kind) in {typing.Required, typing.NotRequired}:
            needed = typing.get_origin(kind) is typing.Required
            kind = typing.get_args(kind)[0]
        default = inspect.Parameter.empty if needed else ...
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default
            )
        )
    return inspect.Signature(parameters)


def annotation_of(factory: Any, annotation: Any) -> Any:
    """Return *annotation* as an object where it was written as text, `Unreadable` if a name in it is unknown."""
    import typing

    if _has_text(annotation):
        annotation = _evaluated(factory, annotation)
    if type(annotation).__name__ == "InitVar" and hasattr(annotation, "type"):
        return annotation_of(factory, annotation.type)  # an argument of `__init__` that is no field
    if annotation is typing.Final:
        return typing.Any
    if typing.get_origin(annotation) is typing.Final:  # a field of a dataclass
        return annotation_of(factory, annotation.__args__[0])
    own = factory if isinstance(factory, type) else getattr(factory, "__self__", None)
    return with_self(annotation, own) if isinstance(own, type) else annotation


def _has_text(annotation: Any) -> bool:
    """Return whether *annotation* is text, or has a part that is, as in `list["Encoder"]`."""
    if isinstance(annotation, str) or hasattr(annotation, "__forward_arg__"):
        return True
    import typing

    if typing.get_origin(annotation) is typing.Literal:
        return False
    if typing.get_origin(annotation) is typing.Annotated:
        return _has_text(annotation.__origin__)
    return any(map(_has_text, typing.get_args(annotation)))


def _evaluated(factory: Any, annotation: Any) -> Any:
    import typing

    failure: Exception | None = None
    for names in _namespaces(factory):
        # A class, because only there may an annotation be Final.
        holder = type("Holder", (), {"__annotations__": {"it": annotation}})
        try:
            return typing.get_type_hints(holder, globalns=names, include_extras=True)["it"]
        except Exception as error:  # noqa: BLE001 - an annotation is any expression
            failure = failure or error
    return Unreadable(
        f"its annotation {clip(_text(annotation), 60)!r} cannot be evaluated ({failure}); define its names at module level "
        f"and outside `if TYPE_CHECKING`"
    )


def _text(annotation: Any) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))


def _namespaces(factory: Any) -> list[dict[str, Any]]:
    """Return where the names in the annotations of *factory* may be defined, the likeliest first."""
    import functools
    import inspect
    import sys

    while isinstance(factory, functools.partial):
        factory = factory.func
    factory = inspect.unwrap(factory)
    found = []
    if isinstance(factory, type):
        methods = [inspect.unwrap(getattr(factory, name)) for name in ("__init__", "__new__")]
        found += [method.__globals__ for method in methods if inspect.isfunction(method)]
        modules = [kind.__module__ for kind in factory.__mro__ if kind is not object]
        found += [vars(sys.modules[name]) for name in modules if name in sys.modules]
        generic = [*reversed(factory.__mro__), *methods]
    else:
        function = getattr(factory, "__func__", factory)
        if not hasattr(function, "__globals__"):
            function = type(factory).__call__
        found.append(getattr(function, "__globals__", {}))
        generic = [getattr(factory, "__self__", None), function]
    # `def f[T](...)` and `class C[T]`: names that no module has.
    own = {one.__name__: one for each in generic for one in getattr(each, "__type_params__", ())}
    return [names | own for names in found] if own else found or [{}]
