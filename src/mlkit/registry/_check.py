"""Check a whole spec against the signatures of what it names, and collect every problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip, closest, did_you_mean, listing
from mlkit.errors import DuplicateNameError, EntryError, UnknownNameError
from mlkit.registry._members import Verdict, choose, is_for, is_live, may_make, wanted
from mlkit.registry._plain import (
    ATOMS,
    MAX_DEPTH,
    NotPlainError,
    as_plain,
    copy_plain,
    normal,
    problem,
    shown,
)
from mlkit.registry._plan import make_plan
from mlkit.registry._planned import (
    Alive,
    Given,
    Known,
    Many,
    Planned,
    plain_form,
    written_form,
)
from mlkit.registry._shape import IT, Choose, Fixed, Items, Node, Plain, Shape
from mlkit.registry._spec import Spec
from mlkit.registry._target import qualified
from mlkit.registry._text import is_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlkit.registry._entry import Entry
    from mlkit.registry._origin import Origins
    from mlkit.registry._plain import Found, Path
    from mlkit.registry._plan import Parameter
    from mlkit.registry._registry import Registry

__all__ = ["Checker"]

_NONE: frozenset[type] = frozenset()


class Checker:
    """One walk over one spec.

    Args:
        keep: Whether values that fit are handed on as the very objects; otherwise they are the spec's own, and copied.
        origins: The modules that registered the names of an unpickled spec.

    Attributes:
        problems: What is wrong so far.
        deprecated: Deprecated entries met so far, each with the name of its registry.
        cause: The first error of importing an entry, to be the cause of the SpecError.
    """

    __slots__ = ("_keep", "_origins", "cause", "deprecated", "problems")

    def __init__(self, *, keep: bool, origins: Origins | None = None) -> None:
        self._keep, self._origins = keep, origins
        self.problems: list[Found] = []
        self.deprecated: dict[Entry, str] = {}
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
        known = self._known(registry, data, path if bare else (*path, "type"), path)
        if known is None:
            return None
        if known.entry.deprecated is not None:
            self.deprecated[known.entry] = known.registry
        if known.migrates:
            return self._migrated(registry, known, data, path, kind)
        planned = Planned(known, path)
        if kind is not None:
            if not may_make(known, kind):
                message = (
                    f"expected a {qualified(kind)}, but {known.entry.ref!r} makes something else"
                )
                self._problem(path, "value", message)
                return None
            if not isinstance(known.ready, type):
                planned.kind = kind
        before = len(self.problems)
        self._arguments(planned, data, path)
        if len(self.problems) == before:
            return planned
        order = {key: index for index, key in enumerate(data)}
        here, late = len(path), len(order)
        self.problems[before:] = sorted(
            self.problems[before:],
            key=lambda found: order.get(found[0][here], late) if len(found[0]) > here else late,
        )
        return None

    def _problem(
        self, path: Path, kind: str, message: str, suggestions: Sequence[str] = ()
    ) -> None:
        self.problems.append(problem(path, kind, message, suggestions))

    # --- what to call ------------------------------------------------------------------------------------------------

    def _known(
        self, registry: Registry[Any], data: dict[Any, Any], path: Path, at: Path
    ) -> Known | None:
        """Find what `type` names."""
        name = data.get("type")
        catalogue = registry._catalogue  # noqa: SLF001 - the two are one mechanism
        if type(name) is str and not catalogue.overriding and self._origins is None:
            found: Known | None = catalogue.plans.get(name)
            if found is not None:
                return found
        if "type" not in data:
            message = (
                f"there is no 'type', the name of what to build from registry {registry.name!r}"
            )
            self._problem(at, "type", message)
            return None
        if type(name) is not str or not name:
            self._problem(path, "type", f"expected a name or 'name@version', got {shown(name)}")
            return None
        try:
            return self.load(registry, name)
        except UnknownNameError as error:
            self._unknown_name(registry, name, error, path, bare=path == at)
        except (EntryError, DuplicateNameError) as error:
            self.cause = self.cause or error
            self._problem(path, "entry", str(error))
        return None

    def load(self, registry: Registry[Any], name: str) -> Known:
        """Return what *name* stands for, imported if need be.

        Raises:
            UnknownNameError: If nothing is registered under it.
            EntryError: If it cannot be used.
            DuplicateNameError: If two installed distributions claim it.
        """
        if self._origins is not None:
            self._origins.fetch(registry.name, name)
        catalogue = registry._catalogue  # noqa: SLF001 - as above
        cache = catalogue.plans
        entry, record = catalogue.find(name)
        ready = catalogue.load(record)
        plan = record.plan
        if plan is None:
            factory: Any = record.factory
            plan = record.plan = make_plan(registry.name, record.entry, factory)
        known = Known(
            registry.name, entry, ready, plan, record, migrates=record.said.migrate is not None
        )
        if not catalogue.overriding:
            cache[name] = known
        return known

    def _unknown_name(
        self,
        registry: Registry[Any],
        name: str,
        error: UnknownNameError,
        path: Path,
        *,
        bare: bool,
    ) -> None:
        what = _loadable(name) if bare else ""
        if what:
            message = f"expected a name, got {shown(name)}, which looks like {what}; pass Spec.load(...) of it"
            self._problem(path, "unknown_name", message)
            return
        why = self._origins.why(registry.name, name) if self._origins is not None else ""
        message = (
            f"unknown name {clip(name, 60)!r} in registry {registry.name!r}{why}"
            if why
            else str(error)
        )
        self._problem(path, "unknown_name", message, error.suggestions)

    def _migrated(
        self,
        registry: Registry[Any],
        known: Known,
        data: dict[Any, Any],
        path: Path,
        kind: type | None,
    ) -> Planned | None:
        """Check what the entry says has become of it and its arguments."""
        given = {name: value for name, value in data.items() if name != "type"}
        try:
            own = given if self._keep else copy_plain(given)
            name, made = registry._catalogue.follow(known.record, own)  # noqa: SLF001 - as above
        except EntryError as error:
            self.cause = self.cause or error
            self._problem(path, "entry", str(error))
            return None
        return self.node(registry, {"type": name, **made}, path, kind)

    # --- with which arguments ----------------------------------------------------------------------------------------

    def _arguments(self, planned: Planned, data: dict[Any, Any], path: Path) -> None:
        """Check names and values, and fill *planned*."""
        plan = planned.known.plan
        exact, parameters, atoms, parts = plan.exact, plan.parameters, planned.atoms, planned.parts
        plain: dict[str, Any] = {}
        last, in_order = -1, True
        for name, value in data.items():
            if type(value) in exact.get(name, _NONE):
                atoms[name] = value
                continue
            if name == "type":
                continue
            parameter = parameters.get(name)
            if parameter is None:
                parameter = plan.extras if type(name) is str else None
                if parameter is None:
                    self._unknown_argument(planned, name, path)
                    continue
            if parameter.index < last:
                in_order = False
            last = parameter.index
            node = parameter.node
            if node is not None and type(value) is dict and "type" in value:  # the common case
                parts[name] = planned.written[name] = self.node(
                    node.registry, value, (*path, name), node.kind
                )
            elif parameter.shape is None and not parameter.obscure:
                plain[name] = value
            else:
                self._part(planned, parameter, name, value, (*path, name))
        for name in plan.required:
            if name not in data:
                message = f"{planned.known.entry.ref} needs an argument {name!r}"
                self._problem((*path, name), "missing_argument", message)
        if plain:
            self._plain(planned, plain, path)
        if not in_order:  # what is built does not depend on the order of keys
            planned.parts = {name: parts[name] for name in parameters if name in parts} | parts
        if plan.extras is not None:
            planned.order = [name for name in data if name != "type"]

    def _unknown_argument(self, planned: Planned, name: Any, path: Path) -> None:
        entry, plan = planned.known.entry, planned.known.plan
        known = list(plan.parameters)
        near = closest(name, known) if isinstance(name, str) else []
        message = f"{entry.ref} has no argument {clip(name, 60)!r}"
        if near:
            message += did_you_mean(name, known)
        elif plan.unsigned:
            message += " that a spec could name, because Python knows no signature of it; wrap it in a function"
        elif plan.swallows:
            own = f"of its own; it has {listing(known)}, and" if known else "of its own, and"
            message += (
                f" {own} what only **kwargs takes must be allowed by registering it with extra=True"
            )
        else:
            message += f"; it has {listing(known)}"
        where = name if isinstance(name, str) else repr(name)
        self._problem((*path, where), "unknown_argument", message, near)

    def _plain(self, planned: Planned, plain: dict[str, Any], path: Path) -> None:
        """Check arguments that nest nothing, all at once."""
        given = plain if self._keep else copy_plain(plain)
        checked = planned.known.plan.validator.check(given, keep=self._keep)
        for mismatch in checked.mismatches:
            self._problem((*path, *mismatch.path), "value", mismatch.message, mismatch.near)
        for name, value in checked.arguments.items():
            planned.parts[name] = value
            planned.note(name, _form(plain[name], checked.made.get(name, value)))

    def _part(
        self, planned: Planned, parameter: Parameter, name: str, value: Any, path: Path
    ) -> None:
        """Check an argument that may nest specs."""
        if parameter.obscure:
            self._problem(path, "value", f"{name!r} cannot be checked: {parameter.obscure}")
            return
        shape: Any = parameter.shape
        before = len(self.problems)
        part = self._shaped(shape, value, path)
        if len(self.problems) == before:
            planned.parts[name] = part
            planned.note(name, written_form(part))

    def _shaped(self, shape: Shape, value: Any, path: Path) -> Any:
        if isinstance(shape, Node):
            return self._member(shape, value, path)
        if isinstance(shape, Choose):
            return self._one_of(shape, value, path)
        if isinstance(shape, Plain):
            return self._leaf(shape, value, path)
        if isinstance(shape, Items):
            return self._items(shape, value, path)
        if isinstance(shape, Fixed):
            return self._fixed(shape, value, path)
        return self._values(shape.inner, value, path)

    def _member(self, shape: Node, value: Any, path: Path) -> Any:
        if is_for(shape, value):
            return self.node(shape.registry, value, path, shape.kind)
        if is_live(shape, value):
            return value
        message = f"expected {wanted(shape)}, got {shown(value)}"
        self._problem(path, "value", message)
        return None

    def _one_of(self, shape: Choose, value: Any, path: Path) -> Any:
        if value is None and shape.optional:
            return None
        verdict, member = choose(shape, value, self._origins)
        if verdict is Verdict.MEMBER:
            return self._shaped(member, value, path)
        if verdict is Verdict.LIVE:
            return value
        if verdict is Verdict.PROBLEM:
            self._problem(path, "value", f"expected {member}, got {shown(value)}")
            return None
        if verdict is Verdict.AMBIGUOUS:
            self._problem(path, "value", member)
            return None
        return self._leaf(member, value, path)

    def _leaf(self, shape: Plain, value: Any, path: Path) -> Any:
        own = value if self._keep else copy_plain(value)
        checked = shape.validator.check({IT: own}, keep=self._keep)
        for mismatch in checked.mismatches:
            self._problem((*path, *mismatch.path[1:]), "value", mismatch.message, mismatch.near)
        made = checked.arguments[IT]
        if type(made) in ATOMS:
            return made
        return Given(made, _form(value, checked.made.get(IT, made)), shape.validator)

    def _items(self, shape: Items, value: Any, path: Path) -> Any:
        kinds = (list, tuple) if shape.make in {list, tuple} else (list, tuple, set, frozenset)
        if not isinstance(value, kinds):
            self._problem(path, "value", f"expected a list of specs, got {shown(value)}")
            return None
        items = [
            self._shaped(shape.inner, item, (*path, index)) for index, item in enumerate(value)
        ]
        if type(value) is shape.make and all(a is b for a, b in zip(items, value, strict=True)):
            return value  # nothing was built: the caller's own list
        return Many(shape.make, items)

    def _fixed(self, shape: Fixed, value: Any, path: Path) -> Any:
        n = len(shape.inner)
        if not isinstance(value, list | tuple) or len(value) != n:
            self._problem(path, "value", f"expected a list of {n} parts, got {shown(value)}")
            return None
        pairs = zip(shape.inner, value, strict=True)
        items = [
            self._shaped(inner, item, (*path, index)) for index, (inner, item) in enumerate(pairs)
        ]
        if type(value) is tuple and all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return Many(tuple, items)

    def _values(self, inner: Shape, value: Any, path: Path) -> Any:
        if not hasattr(value, "items"):
            self._problem(path, "value", f"expected a mapping of specs, got {shown(value)}")
            return None
        keys = list(value)
        for key in keys:
            if not isinstance(key, str):
                self._problem(path, "value", f"expected text as keys, got {shown(key)}")
                return None
        items = [self._shaped(inner, item, (*path, str(key))) for key, item in value.items()]
        if all(a is b for a, b in zip(items, value.values(), strict=True)):
            return value
        return Many(list, items, keys)


def _form(value: Any, made: Any) -> Any:
    """Return how a plain argument is written: as it was given, with floats where integers were made floats."""
    if type(value) in ATOMS and type(value) is not int and type(value) is not float:
        return value
    form = plain_form(value)
    if isinstance(form, Alive):
        return form
    try:
        return as_plain(normal(form, made))
    except NotPlainError as error:  # too deep together with the specs of what was built
        return Alive(str(error))


def _loadable(name: str) -> str:
    """Return what a bare text is that was meant for `Spec.load`, or an empty text."""
    if is_text(name):
        return "the text of a spec"
    return "a file" if name.endswith((".yaml", ".yml", ".json")) else ""
