"""How `build` calls one factory: its parameters, what each may be given, and the validator for the plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.errors import EntryError
from mlkit.registry._plain import ATOMS, NotPlainError, as_plain, normal
from mlkit.registry._shape import IT, Choose, Node, Plain, Shape, UnsupportedError, shape_of
from mlkit.registry._signature import Unreadable, annotation_of, signature_of
from mlkit.registry._validate import Validator, exact_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from inspect import Parameter as Declared
    from inspect import Signature

    from mlkit.registry._entry import Entry

__all__ = ["ABSENT", "Parameter", "Plan", "make_plan"]

ABSENT: Any = object()
_LAST = 1_000_000


class Parameter:
    """One parameter of a factory.

    Attributes:
        name: Its name.
        index: Its place in the signature.
        default: Its default, `ABSENT` if it has none.
        written: The default as plain data, `ABSENT` if it has no plain form that means the same.
        annotation: As an object, `ABSENT` if it has none or it cannot be used.
        shape: How nested specs fit in, None if they do not.
        node: The shape if it is one nested spec, or one or None.
        obscure: Why its annotation cannot be used, empty if it can.
        takes_none: Whether None passes unchecked: the default of a nested parameter, whatever its annotation.
    """

    __slots__ = (
        "annotation",
        "default",
        "index",
        "name",
        "node",
        "obscure",
        "shape",
        "takes_none",
        "written",
    )

    def __init__(self, name: str, index: int, default: Any, annotation: Any) -> None:
        self.name, self.index, self.default = name, index, default
        self.annotation = annotation
        self.written: Any = ABSENT
        self.shape: Shape | None = None
        self.node: Node | None = None
        self.obscure = ""
        self.takes_none = False
        if isinstance(annotation, Unreadable):
            self.obscure, self.annotation = annotation.reason, ABSENT
        elif annotation is not ABSENT:
            try:
                self._place(shape_of(annotation))
            except UnsupportedError as error:
                self.obscure, self.annotation = str(error), ABSENT

    def _place(self, shape: Shape | None) -> None:
        self.shape = shape
        if shape is None:
            return
        self.takes_none = self.default is None
        if isinstance(shape, Choose):
            self.takes_none = self.takes_none or shape.optional
            if len(shape.members) == 1:
                shape = shape.members[0]
        if isinstance(shape, Node):
            self.node = shape

    @property
    def exact(self) -> frozenset[type]:
        """Types of which every value is right as it is."""
        if self.obscure:
            return frozenset()
        if self.shape is not None:
            return frozenset({type(None)}) if self.takes_none else frozenset()
        return ATOMS if self.annotation is ABSENT else exact_types(self.annotation)


class Plan:
    """What is known about a factory's arguments. Immutable once made.

    Attributes:
        parameters: By name, in the order of the signature.
        exact: By name, the types of which every value is right as it is.
        required: Names without a default.
        extras: What a name that is no parameter's may be given; None if there are no such names.
        swallows: Whether the factory has `**kwargs` that are not open to specs.
        unsigned: Whether Python knows no signature of it, so that it can be built without arguments only.
        variadic: The name of `*args`; empty if there are none.
        validator: Checks the plain arguments.
        returns: The class that a function says it returns, None if it does not say.
    """

    __slots__ = (
        "_ordered",
        "_positional",
        "exact",
        "extras",
        "parameters",
        "required",
        "returns",
        "simple",
        "swallows",
        "unsigned",
        "validator",
        "variadic",
    )

    def __init__(
        self,
        parameters: dict[str, Parameter],
        *,
        positional: tuple[str, ...] = (),
        ordered: tuple[str, ...] = (),
        variadic: str = "",
        extras: Parameter | None = None,
        swallows: bool = False,
        unsigned: bool = False,
        returns: type | None = None,
    ) -> None:
        self.parameters = parameters
        self.exact = {name: parameter.exact for name, parameter in parameters.items()}
        self.required = tuple(
            p.name for p in parameters.values() if p.default is ABSENT and p.name != variadic
        )
        self._positional, self._ordered = positional, ordered
        self.variadic, self.extras, self.swallows = variadic, extras, swallows
        self.unsigned, self.returns = unsigned, returns
        self.simple = not positional and not variadic
        self.validator = Validator(
            {
                name: parameter.annotation
                for name, parameter in parameters.items()
                if parameter.shape is None and parameter.annotation is not ABSENT
            }
        )
        for parameter in parameters.values():
            if parameter.default is not ABSENT:
                parameter.written = _written(parameter, self)

    def call(self, factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call *factory* with *arguments*, each as its parameter wants it."""
        if self.simple:
            return factory(**arguments)
        by_name = dict(arguments)
        rest = by_name.pop(self.variadic, ())
        names = self._ordered if rest else self._positional
        last = len(names) - 1
        if not rest:
            last = max((i for i, name in enumerate(names) if name in arguments), default=-1)
        by_position = [
            by_name.pop(name, self.parameters[name].default) for name in names[: last + 1]
        ]
        return factory(*by_position, *rest, **by_name)


def make_plan(registry: str, entry: Entry, factory: Callable[..., Any]) -> Plan:
    """Read the signature of *factory*.

    Raises:
        EntryError: If it has a parameter called `type`.
    """
    signature = signature_of(factory)
    if signature is None:
        return Plan({}, unsigned=True)
    if "type" in signature.parameters:
        raise EntryError(
            registry,
            entry.ref,
            target=entry.target,
            reason="it has a parameter called 'type', the key that names what to build; rename the parameter",
        )
    return _read(factory, signature, extra=entry.extra)


def _read(factory: Any, signature: Signature, *, extra: bool) -> Plan:
    parameters: dict[str, Parameter] = {}
    positional, ordered, variadic = [], [], ""
    extras, swallows = None, False
    for index, declared in enumerate(_declared(factory, signature)):
        name, kind = declared.name, declared.kind
        annotation = _annotation(factory, declared)
        if kind is declared.VAR_KEYWORD:
            swallows = not extra
            extras = _extras(annotation) if extra else None
            continue
        if kind is declared.VAR_POSITIONAL:
            variadic = name
            annotation = _many(annotation)
        elif kind is not declared.KEYWORD_ONLY:
            ordered.append(name)
            if kind is declared.POSITIONAL_ONLY:
                positional.append(name)
        default = ABSENT if declared.default is declared.empty else declared.default
        if default is None and not _checks_itself(factory):
            annotation = _or_none(annotation)
        parameters[name] = Parameter(name, index, default, annotation)
    plan = Plan(
        parameters,
        positional=tuple(positional),
        ordered=tuple(ordered),
        variadic=variadic,
        extras=extras,
        swallows=swallows,
        returns=_returns(factory, signature),
    )
    for name, made in _empty_defaults(factory):
        if name in parameters:
            parameters[name].written = made
    return plan


def _declared(factory: Any, signature: Signature) -> Iterator[Declared]:
    """Yield the parameters; for `**options: Unpack[Options]` those that the typed dictionary names."""
    import typing

    for declared in signature.parameters.values():
        if declared.kind is declared.VAR_KEYWORD:
            annotation = _annotation(factory, declared)
            inner = typing.get_args(annotation)
            # typing's, or on Python 3.11 the other one of typing_extensions
            if inner and str(typing.get_origin(annotation)).endswith(".Unpack"):
                named = signature_of(inner[0])
                yield from () if named is None else named.parameters.values()
                continue
        yield declared


def _annotation(factory: Any, declared: Declared) -> Any:
    if declared.annotation is declared.empty:
        return ABSENT
    return annotation_of(factory, declared.annotation)


def _or_none(annotation: Any) -> Any:
    """Return the annotation of a parameter that is None by default: `width: int = None` takes None, whatever it says."""
    if annotation is ABSENT or isinstance(annotation, Unreadable):
        return annotation
    import typing

    try:
        return typing.Optional[annotation]  # noqa: UP045 - an annotation may be what has no `|`
    except TypeError:  # no type at all; what checks it says so
        return annotation


def _checks_itself(factory: Any) -> bool:
    """Whether the factory refuses the None that it has as its default, when that is passed: pydantic checks no defaults."""
    return hasattr(factory, "__pydantic_validator__") or hasattr(factory, "raw_function")


def _empty_defaults(factory: Any) -> list[tuple[str, Any]]:
    """Return the fields that are an empty container by default, which the signature does not show.

    Of a dataclass, an attrs class and a pydantic model, each by what it keeps itself: none is imported.
    """
    if not isinstance(factory, type):
        return []
    made = [
        (name, field.default_factory)
        for name, field in getattr(factory, "__dataclass_fields__", {}).items()
    ]
    made += [
        (getattr(field, "alias", field.name), getattr(field.default, "factory", None))
        for field in getattr(factory, "__attrs_attrs__", ())
    ]
    made += [
        (field.alias or name, field.default_factory)
        for name, field in getattr(factory, "__pydantic_fields__", {}).items()
    ]
    return [
        (name, {} if make is dict else [])
        for name, make in made
        if isinstance(make, type) and make in {list, dict, set, tuple, frozenset}
    ]


def _many(annotation: Any) -> Any:
    """Return the annotation of `*args` as that of one list."""
    if isinstance(annotation, Unreadable):
        return annotation
    kind: Any = tuple
    return kind[Any if annotation is ABSENT else annotation, ...]


def _extras(annotation: Any) -> Parameter:
    """Return the parameter that stands for every name that only `**kwargs` takes."""
    parameter = Parameter("", _LAST, ABSENT, annotation)
    if parameter.shape is None and not parameter.obscure:
        kind = Any if parameter.annotation is ABSENT else parameter.annotation
        parameter.shape = Plain(Validator({IT: kind}))
    return parameter


def _returns(factory: Any, signature: Signature) -> type | None:
    if isinstance(factory, type) or signature.return_annotation is signature.empty:
        return None
    found = annotation_of(factory, signature.return_annotation)
    return found if isinstance(found, type) else None


def _written(parameter: Parameter, plan: Plan) -> Any:
    """Return the default as plain data if giving that to the factory means the same as leaving it out."""
    default = parameter.default
    if type(default) in plan.exact[parameter.name]:
        return default
    try:
        plain = as_plain(default)
    except NotPlainError:
        return ABSENT
    if parameter.shape is not None or parameter.obscure:
        same = default is None or default in ((), [], {})
        return plain if same and not parameter.obscure else ABSENT
    checked = plan.validator.check({parameter.name: plain})
    if checked.mismatches:
        return ABSENT
    again = checked.arguments[parameter.name]
    number = type(again) is float and type(default) is int  # `dropout: float = 0`
    try:
        same = (number or type(again) is type(default)) and bool(again == default)
    except Exception:  # noqa: BLE001 - a foreign `==` may do anything
        return ABSENT
    # NaN is the one value that is not equal to itself.
    nan = type(again) is float and type(default) is float and again != again and default != default  # noqa: PLR0124
    return normal(plain, again) if same or nan else ABSENT
