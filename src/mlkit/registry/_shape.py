"""Which parts of an annotation are built from nested specs: `Annotated[X, registry]`, alone or in containers."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

if TYPE_CHECKING:
    from mlkit.registry._registry import Registry

__all__ = ["Choose", "Items", "Node", "Shape", "UnsupportedError", "Values", "shape_of"]


class UnsupportedError(TypeError):
    """An annotation nests a registry in a way that `build` does not understand."""


class Node(NamedTuple):
    """One nested spec."""

    registry: Registry[Any]
    kind: type | None  # the annotated class, which may be narrower than the registry's base


class Items(NamedTuple):
    """A list or tuple of nested specs."""

    inner: Shape
    make: type


class Values(NamedTuple):
    """A mapping of text to nested specs."""

    inner: Shape


class Choose(NamedTuple):
    """A nested spec or something else: `None`, or what the rest of the union says."""

    inner: Shape
    optional: bool
    rest: Any  # an annotation, None if there is nothing but None


Shape = Node | Items | Values | Choose


def shape_of(annotation: Any) -> Shape | None:
    """Return how *annotation* nests specs, or None if it does not.

    Raises:
        UnsupportedError: If it does so where no spec can be told from data: in sets, callables, two registries in one
            union.
    """
    annotation = getattr(annotation, "__value__", annotation)  # `type X = ...`
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(annotation)
    if not args:
        return None
    if origin is Union or origin is types.UnionType:
        return _union(annotation, args)
    inner = [shape_of(arg) for arg in args if arg is not Ellipsis and not isinstance(arg, list)]
    nested = [shape for shape in inner if shape is not None]
    if not nested:
        return None
    return _container(annotation, origin, args, nested)


def _annotated(annotation: Any) -> Shape | None:
    from mlkit.registry._registry import Registry

    found = [mark for mark in annotation.__metadata__ if isinstance(mark, Registry)]
    if not found:
        return shape_of(annotation.__origin__)
    if len(found) > 1:
        raise UnsupportedError(f"{annotation} names two registries")
    kind = annotation.__origin__
    plain = get_origin(kind) or kind
    is_class = isinstance(plain, type) and plain is not object and plain is not Any
    return Node(found[0], plain if is_class else None)


def _union(annotation: Any, args: tuple[Any, ...]) -> Shape | None:
    shapes = [shape_of(arg) for arg in args]
    nested = [shape for shape in shapes if shape is not None]
    if not nested:
        return None
    if len(nested) > 1:
        raise UnsupportedError(f"{annotation} has two parts that are built from specs")
    rest = [
        arg
        for arg, shape in zip(args, shapes, strict=True)
        if shape is None and arg is not type(None)
    ]
    return Choose(nested[0], type(None) in args, Union[tuple(rest)] if rest else None)  # noqa: UP007 - rest is a list


def _container(annotation: Any, origin: Any, args: tuple[Any, ...], nested: list[Shape]) -> Shape:
    from collections.abc import (
        Collection,
        Iterable,
        Mapping,
        MutableMapping,
        MutableSequence,
        Sequence,
    )

    if origin in {list, Sequence, MutableSequence, Collection, Iterable}:
        return Items(nested[0], list)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return Items(nested[0], tuple)
    if origin in {dict, Mapping, MutableMapping} and args[0] is str and len(nested) == 1:
        return Values(nested[0])
    raise UnsupportedError(
        f"{annotation} is not understood; nest a registry in list[...], tuple[..., ...], dict[str, ...] or Optional[...]"
    )
