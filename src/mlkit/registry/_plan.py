"""How `build` calls one factory: its parameters, what each may be given, and the validator for the plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.errors import EntryError
from mlkit.registry._plain import NotPlainError, as_plain, normal
from mlkit.registry._shape import Choose, Node, Shape, UnsupportedError, shape_of
from mlkit.registry._validate import Validator

if TYPE_CHECKING:
    from collections.abc import Callable
    from inspect import Parameter as Declared

    from mlkit.registry._entry import Entry

__all__ = ["ABSENT", "Parameter", "Plan", "make_plan"]

ABSENT: Any = object()


class Parameter:
    """One parameter of a factory.

    Attributes:
        name: Its name.
        required: Whether it has no default.
        positional: Whether it can only be passed by position.
        default: Its default, `ABSENT` if it has none.
        written: The default as plain data, `ABSENT` if it has no plain form that means the same.
        shape: How nested specs fit in, None if they do not.
        obscure: Why its annotation cannot be used, empty if it can.
        node: The shape if it is one nested spec, or one or None.
        rest: What else a nested parameter may be: an annotation, `ABSENT` if nothing.
    """

    __slots__ = (
        "default",
        "name",
        "node",
        "obscure",
        "positional",
        "required",
        "rest",
        "shape",
        "written",
    )

    def __init__(self, declared: Declared) -> None:
        self.name = declared.name
        self.required = declared.default is declared.empty
        self.positional = declared.kind is declared.POSITIONAL_ONLY
        self.default = ABSENT if self.required else declared.default
        self.written: Any = ABSENT
        self.shape: Shape | None = None
        self.node: Node | None = None
        self.obscure = ""
        self.rest: Any = ABSENT


class Plan:
    """What is known about a factory's arguments. Immutable once made.

    Attributes:
        parameters: By name, in the order of the signature.
        required: Names without a default.
        open: Whether any name is taken: the factory declares `**kwargs` and no name of its own.
        unsigned: Whether Python knows no signature of it, so that it can be built without arguments only.
        closed_kwargs: Whether it declares `**kwargs` besides names of its own; what they would swallow is refused.
        positional: Names of positional-only parameters.
        validator: Checks the plain arguments.
    """

    __slots__ = (
        "closed_kwargs",
        "open",
        "parameters",
        "positional",
        "required",
        "unsigned",
        "validator",
    )

    def __init__(
        self,
        parameters: dict[str, Parameter],
        validator: Validator,
        *,
        takes_any: bool,
        unsigned: bool = False,
    ) -> None:
        self.parameters = parameters
        self.required = tuple(p.name for p in parameters.values() if p.required)
        self.positional = tuple(p.name for p in parameters.values() if p.positional)
        self.open = takes_any and not parameters
        self.closed_kwargs = takes_any and bool(parameters)
        self.unsigned = unsigned
        self.validator = validator

    def call(self, factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call *factory* with *arguments*, each as its parameter wants it."""
        if not self.positional:
            return factory(**arguments)
        by_name = dict(arguments)
        last = max((i for i, name in enumerate(self.positional) if name in arguments), default=-1)
        by_position = [
            by_name.pop(name, self.parameters[name].default) for name in self.positional[: last + 1]
        ]
        return factory(*by_position, **by_name)


def make_plan(registry: str, entry: Entry, factory: Callable[..., Any]) -> Plan:
    """Read the signature of *factory*.

    Raises:
        EntryError: If it has a parameter called `type`.
    """
    import inspect

    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some classes written in C, and what inherits from them
        return Plan({}, Validator({}), takes_any=False, unsigned=True)
    parameters: dict[str, Parameter] = {}
    annotations: dict[str, Any] = {}
    takes_any = False
    for declared in signature.parameters.values():
        if declared.kind is declared.VAR_KEYWORD:
            takes_any = True
        elif declared.kind is not declared.VAR_POSITIONAL:
            parameters[declared.name] = Parameter(declared)
            annotations[declared.name] = declared.annotation
    if "type" in parameters:
        raise EntryError(
            registry,
            entry.ref,
            target=entry.target,
            reason="it has a parameter called 'type', the key that names what to build; rename the parameter",
        )
    plain: dict[str, Any] = {}
    for name, annotation in annotations.items():
        if annotation is inspect.Parameter.empty:
            continue
        _place(parameters[name], _evaluated(factory, annotation), plain)
    validator = Validator(plain)
    for parameter in parameters.values():
        if parameter.default is not ABSENT:
            parameter.written = _written(parameter, validator)
    return Plan(parameters, validator, takes_any=takes_any)


def _place(parameter: Parameter, annotation: Any, plain: dict[str, Any]) -> None:
    """Decide whether *parameter* is nested or plain."""
    if isinstance(annotation, NameError):
        parameter.obscure = str(annotation)
        return
    try:
        parameter.shape = shape_of(annotation)
    except UnsupportedError as error:
        parameter.obscure = str(error)
        return
    if parameter.shape is None:
        plain[parameter.name] = annotation
        return
    shape = parameter.shape
    if isinstance(shape, Choose):
        if shape.rest is not None:
            plain[parameter.name] = parameter.rest = shape.rest
        shape = shape.inner
    if isinstance(shape, Node):
        parameter.node = shape


def _evaluated(factory: Any, annotation: Any) -> Any:
    """Return *annotation* as an object where it was written as text; a NameError if a name in it is unknown."""
    if not isinstance(annotation, str):
        return annotation
    import typing

    failure: Exception | None = None
    for names in _namespaces(factory):
        holder = typing.cast("Any", lambda: None)
        holder.__annotations__ = {"it": annotation}
        try:
            return typing.get_type_hints(holder, globalns=names, include_extras=True)["it"]
        except Exception as error:  # noqa: BLE001 - an annotation is any expression
            failure = failure or error
    return NameError(
        f"its annotation {clip(annotation, 60)!r} cannot be evaluated ({failure}); define its names at module level "
        f"and outside `if TYPE_CHECKING`"
    )


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
    else:
        function = getattr(factory, "__func__", factory)
        if not hasattr(function, "__globals__"):
            function = type(factory).__call__
        found.append(getattr(function, "__globals__", {}))
    return found or [{}]


def _written(parameter: Parameter, validator: Validator) -> Any:
    """Return the default as plain data if giving that to the factory means the same as leaving it out."""
    default = parameter.default
    try:
        plain = as_plain(default)
    except NotPlainError:
        return ABSENT
    if parameter.shape is not None:
        return plain if default is None or default in ((), [], {}) else ABSENT
    checked = validator.check({parameter.name: plain})
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
