"""Check a whole spec against the signatures of what it names, and collect every problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip, closest, did_you_mean, listing
from mlkit.errors import DuplicateNameError, EntryError, UnknownNameError
from mlkit.registry._plain import MAX_DEPTH, problem, shown
from mlkit.registry._plan import ABSENT, Parameter, make_plan
from mlkit.registry._planned import Many, Planned, write
from mlkit.registry._shape import Choose, Items, Node, Shape, Values
from mlkit.registry._spec import Spec
from mlkit.registry._target import base_name, qualified
from mlkit.registry._text import is_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.registry._entry import Entry
    from mlkit.registry._plain import Found, Path
    from mlkit.registry._registry import Registry

__all__ = ["Checker"]

_PLAIN_KINDS = (type(None), bool, int, float, str, list, dict)


class Checker:
    """One walk over one spec.

    Attributes:
        problems: What is wrong so far.
        deprecated: Deprecated entries met so far.
        cause: The first error of importing an entry, to be the cause of the SpecError.
    """

    __slots__ = ("_keep", "cause", "deprecated", "problems")

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self.problems: list[Found] = []
        self.deprecated: list[Entry] = []
        self.cause: Exception | None = None

    def node(
        self, registry: Registry[Any], value: Any, path: Path, kind: type | None
    ) -> Planned | None:
        """Check one nested spec, given as a mapping or as a bare name."""
        if len(path) > MAX_DEPTH:
            self._problem(path, "value", f"expected at most {MAX_DEPTH} levels of nesting")
            return None
        if isinstance(value, Spec):
            value = value.to_dict()
        bare = isinstance(value, str)
        data = {"type": value} if bare else value if type(value) is dict else dict(value)
        planned = self._start(registry, data, path if bare else (*path, "type"), path)
        if planned is None:
            return None
        if kind is not None and not _may_make(planned.ready, kind):
            name = planned.entry.ref
            message = f"expected a {qualified(kind)}, but {name!r} makes something else"
            self._problem(path, "value", message)
            return None
        before = len(self.problems)
        plain = self._sort_out(planned, data, path)
        made = self._check_plain(planned, plain, path)
        if len(self.problems) > before:
            order = {key: index for index, key in enumerate(data)}
            late = len(order)
            self.problems[before:] = sorted(
                self.problems[before:],
                key=lambda found: (
                    order.get(found[0][len(path)], late) if len(found[0]) > len(path) else late
                ),
            )
            return None
        planned.written = write(planned, data, made)
        return planned

    def _problem(
        self, path: Path, kind: str, message: str, suggestions: Sequence[str] = ()
    ) -> None:
        self.problems.append(problem(path, kind, message, suggestions))

    def _start(
        self, registry: Registry[Any], data: dict[Any, Any], path: Path, at: Path
    ) -> Planned | None:
        """Find what `type` names."""
        if "type" not in data:
            message = (
                f"there is no 'type', the name of what to build from registry {registry.name!r}"
            )
            self._problem(at, "type", message)
            return None
        name = data["type"]
        try:
            if type(name) is not str or not name:
                self._problem(path, "type", f"expected a name or 'name@version', got {shown(name)}")
                return None
            catalogue = registry._catalogue  # noqa: SLF001 - the two are one mechanism
            entry, record = catalogue.find(name)
            ready = catalogue.load(record)
            factory: Any = record.factory
            plan = record.plan
            if plan is None:
                plan = record.plan = make_plan(registry.name, entry, factory)
        except UnknownNameError as error:
            what = _loadable(name) if path == at else ""
            if what:
                message = f"expected a name, got {shown(name)}, which looks like {what}; pass Spec.load(...) of it"
                self._problem(path, "unknown_name", message)
            else:
                self._problem(path, "unknown_name", str(error), error.suggestions)
            return None
        except (EntryError, DuplicateNameError) as error:
            self.cause = self.cause or error
            self._problem(path, "entry", str(error))
            return None
        if entry.deprecated is not None:
            self.deprecated.append(entry)
        return Planned(registry.name, entry, ready, plan, at)

    def _sort_out(self, planned: Planned, data: dict[Any, Any], path: Path) -> dict[str, Any]:
        """Check names and nested specs; return the plain arguments."""
        plan, parameters = planned.plan, planned.plan.parameters
        plain: dict[str, Any] = {}
        for name, value in data.items():
            if name == "type":
                continue
            parameter = parameters.get(name)
            if parameter is None:
                if plan.open and type(name) is str:
                    plain[name] = value
                else:
                    self._unknown_argument(planned, name, path)
            elif parameter.obscure:
                self._problem(
                    (*path, name), "value", f"{name!r} cannot be checked: {parameter.obscure}"
                )
            elif parameter.shape is None:
                plain[name] = value
            else:
                self._nested(planned, parameter, value, (*path, name), plain)
        for name in plan.required:
            if name not in data:
                message = f"{planned.entry.ref} needs an argument {name!r}"
                self._problem((*path, name), "missing_argument", message)
        return plain

    def _unknown_argument(self, planned: Planned, name: Any, path: Path) -> None:
        known = list(planned.plan.parameters)
        near = closest(name, known) if isinstance(name, str) else []
        message = f"{planned.entry.ref} has no argument {clip(name, 60)!r}"
        if near:
            message += did_you_mean(name, known)
        elif planned.plan.unsigned:
            message += " that a spec could name, because Python knows no signature of it; wrap it in a function"
        elif planned.plan.closed_kwargs:
            message += f" of its own; it has {listing(known)}, and what only **kwargs takes is not accepted"
        else:
            message += f"; it has {listing(known)}"
        self._problem(
            (*path, name if isinstance(name, str) else repr(name)),
            "unknown_argument",
            message,
            near,
        )

    def _nested(
        self, planned: Planned, parameter: Parameter, value: Any, path: Path, plain: dict[str, Any]
    ) -> None:
        if value is None and parameter.default is None:
            planned.arguments[parameter.name] = None
            return
        shape: Any = parameter.shape
        if parameter.rest is not ABSENT and not _is_for(shape.inner, value):
            plain[parameter.name] = value
            return
        if (
            parameter.node is not None and type(value) is dict and "type" in value
        ):  # the common case
            node = parameter.node
            planned.arguments[parameter.name] = self.node(node.registry, value, path, node.kind)
        else:
            planned.arguments[parameter.name] = self._shaped(shape, value, path)
        planned.nested.append(parameter.name)

    def _shaped(self, shape: Shape, value: Any, path: Path) -> Any:
        if isinstance(shape, Node):
            return self._member(shape, value, path)
        if isinstance(shape, Choose):
            return (
                None if value is None and shape.optional else self._shaped(shape.inner, value, path)
            )
        if isinstance(shape, Items):
            if not isinstance(value, list | tuple):
                self._problem(path, "value", f"expected a list of specs, got {shown(value)}")
                return None
            items = [
                self._shaped(shape.inner, item, (*path, index)) for index, item in enumerate(value)
            ]
            if all(a is b for a, b in zip(items, value, strict=True)) and type(value) is shape.make:
                return value  # nothing was built: the caller's own list
            return Many(shape.make, items)
        if not hasattr(value, "items"):
            self._problem(path, "value", f"expected a mapping of specs, got {shown(value)}")
            return None
        keys = list(value)
        for key in keys:
            if not isinstance(key, str):
                self._problem(path, "value", f"expected text as keys, got {shown(key)}")
                return None
        items = [self._shaped(shape.inner, item, (*path, str(key))) for key, item in value.items()]
        if all(a is b for a, b in zip(items, value.values(), strict=True)):
            return value
        return Many(lambda made: dict(zip(keys, made, strict=True)), items)

    def _member(self, shape: Node, value: Any, path: Path) -> Any:
        if _is_for(shape, value):
            return self.node(shape.registry, value, path, shape.kind)
        if _is_live(shape, value):
            return value
        wanted = qualified(shape.kind) if shape.kind else base_name(shape.registry.base)
        message = f"expected a mapping with a 'type' from registry {shape.registry.name!r}, or a {wanted}, got {shown(value)}"
        self._problem(path, "value", message)
        return None

    def _check_plain(self, planned: Planned, plain: dict[str, Any], path: Path) -> dict[str, Any]:
        checked = planned.plan.validator.check(plain, keep=self._keep)
        for mismatch in checked.mismatches:
            self._problem((*path, *mismatch.path), "value", mismatch.message)
        planned.arguments.update(checked.arguments)
        return checked.made


def _loadable(name: str) -> str:
    """Return what a bare text is that was meant for `Spec.load`, or an empty text."""
    if is_text(name):
        return "the text of a spec"
    return "a file" if name.endswith((".yaml", ".yml", ".json")) else ""


def _is_for(shape: Shape, value: Any) -> bool:
    """Return whether *value* is meant as a spec, or as a container of specs, for *shape*."""
    if isinstance(shape, Node):
        if isinstance(value, Spec):
            return True
        if isinstance(value, str):
            base = shape.registry.base
            return base is object or not isinstance(value, base)
        return _has_type(value)
    if isinstance(shape, Items):
        return isinstance(value, list | tuple)
    if isinstance(shape, Values):
        return type(value) is dict
    return _is_for(shape.inner, value)


def _has_type(value: Any) -> bool:
    if type(value) is dict:
        return "type" in value
    from collections.abc import Mapping

    return isinstance(value, Mapping) and "type" in value


def _is_live(shape: Node, value: Any) -> bool:
    wanted: Any = shape.kind or shape.registry.base
    if wanted is object:
        return type(value) not in _PLAIN_KINDS
    try:
        return isinstance(value, wanted)
    except TypeError:  # a protocol that cannot be checked at run time
        return isinstance(value, shape.registry.base)


def _may_make(ready: Callable[..., Any], kind: type) -> bool:
    try:
        return not isinstance(ready, type) or issubclass(ready, kind)
    except TypeError:  # as above
        return True
