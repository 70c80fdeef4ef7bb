"""Which parts of an annotation are built from nested specs: `Annotated[X, registry]`, alone or in containers."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

from mlkit.registry._validate import Validator

if TYPE_CHECKING:
    from mlkit.registry._registry import Registry

__all__ = [
    "IT",
    "Choose",
    "Fixed",
    "Items",
    "Node",
    "Plain",
    "Shape",
    "UnsupportedError",
    "Values",
    "shape_of",
]

IT = "it"


class UnsupportedError(TypeError):
    """An annotation nests a registry in a way that `build` does not understand."""


class Node(NamedTuple):
    """One nested spec."""

    registry: Registry[Any]
    kind: type | None  # the annotated class, which may be narrower than the registry's base


class Plain(NamedTuple):
    """A part beside nested specs that is checked like any argument, under the name `IT`."""

    validator: Validator


class Items(NamedTuple):
    """A list, tuple or set of parts."""

    inner: Shape
    make: Any


class Fixed(NamedTuple):
    """A tuple of so many parts."""

    inner: tuple[Shape, ...]


class Values(NamedTuple):
    """A mapping of text to parts."""

    inner: Shape


class Choose(NamedTuple):
    """One of several: nested specs, containers of them, `None`, or what the rest of a union says."""

    members: tuple[Shape, ...]
    optional: bool
    rest: Plain | None


Shape = Node | Plain | Items | Fixed | Values | Choose
_Aliases = dict[Any, bool]  # those that are being looked into, and whether each was met in itself


def shape_of(annotation: Any) -> Shape | None:
    """Return how *annotation* nests specs, or None if it does not.

    Raises:
        UnsupportedError: If it does so where no spec can be told from data: in a callable, in the keys of a mapping, in
            itself.
    """
    return _shape_of(annotation, {})


def _shape_of(annotation: Any, aliases: _Aliases) -> Shape | None:
    origin, args = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__value__"):
        return _of_alias(origin or annotation, args, aliases)
    if origin is Annotated:
        return _annotated(annotation, aliases)
    if not args:
        return None
    if origin is Union or origin is types.UnionType:
        return _union(annotation, args, aliases)
    inner = [arg for arg in args if arg is not Ellipsis and not isinstance(arg, list)]
    if all(_shape_of(arg, aliases) is None for arg in inner):
        return None
    return _container(annotation, origin, args, aliases)


def _of_alias(alias: Any, args: tuple[Any, ...], aliases: _Aliases) -> Shape | None:
    """Return the shape of `type X = ...`, or of `X[...]`; what it says may have itself in it."""
    if alias in aliases:
        aliases[alias] = True
        return None
    value, given = alias.__value__, dict(zip(alias.__type_params__, args, strict=False))
    if given and (wanted := getattr(value, "__parameters__", ())):
        value = value[tuple(given.get(parameter, parameter) for parameter in wanted)]
    aliases[alias] = False
    shape = _shape_of(value, aliases)
    if aliases.pop(alias) and shape is not None:
        raise UnsupportedError(f"{alias} nests a registry and itself; write out one level of it")
    return shape


def _part(annotation: Any, aliases: _Aliases) -> Shape:
    return _shape_of(annotation, aliases) or Plain(Validator({IT: annotation}))


def _annotated(annotation: Any, aliases: _Aliases) -> Shape | None:
    from mlkit.registry._registry import Registry

    found = [mark for mark in annotation.__metadata__ if isinstance(mark, Registry)]
    if not found:
        return _shape_of(annotation.__origin__, aliases)
    if len(found) > 1:
        raise UnsupportedError(
            f"{annotation} names two registries; write Annotated[A, a] | Annotated[B, b]"
        )
    kind = annotation.__origin__
    plain = get_origin(kind) or kind
    is_class = isinstance(plain, type) and plain is not object and plain is not Any
    return Node(found[0], plain if is_class else None)


def _union(annotation: Any, args: tuple[Any, ...], aliases: _Aliases) -> Shape | None:
    shapes = [_shape_of(arg, aliases) for arg in args]
    members = tuple(shape for shape in shapes if shape is not None)
    if not members:
        return None
    for kind in (Items, Fixed, Values):
        if sum(isinstance(member, kind) for member in members) > 1:
            raise UnsupportedError(f"{annotation} has two members that look the same in a spec")
    rest = [
        arg
        for arg, shape in zip(args, shapes, strict=True)
        if shape is None and arg is not type(None)
    ]
    plain = Plain(Validator({IT: Union[tuple(rest)]})) if rest else None  # noqa: UP007 - rest is a list
    return Choose(members, type(None) in args, plain)


def _container(annotation: Any, origin: Any, args: tuple[Any, ...], aliases: _Aliases) -> Shape:
    from collections import abc

    lists = {list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable}
    if origin in lists:
        return Items(_part(args[0], aliases), list)
    if origin in {set, abc.MutableSet}:
        return Items(_part(args[0], aliases), set)
    if origin in {frozenset, abc.Set}:
        return Items(_part(args[0], aliases), frozenset)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return Items(_part(args[0], aliases), tuple)
        return Fixed(tuple(_part(arg, aliases) for arg in args))
    if origin in {dict, abc.Mapping, abc.MutableMapping} and args[0] is str:
        return Values(_part(args[1], aliases))
    raise UnsupportedError(
        f"{annotation} is not understood; nest a registry in list, tuple, set, dict[str, ...] or a union"
    )
