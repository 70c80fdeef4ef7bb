"""A checked spec: what to call with which arguments, and how that is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.registry._plain import ATOMS, MAX_DEPTH, NotPlainError, as_plain, copy_plain
from mlkit.registry._plan import ABSENT, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.registry._entry import Entry, Record
    from mlkit.registry._plain import Path
    from mlkit.registry._validate import Validator

__all__ = ["Alive", "Given", "Known", "Many", "Planned", "plain_form", "written_form"]


class Known(NamedTuple):
    """What one name of one registry stands for."""

    registry: str
    entry: Entry
    ready: Callable[..., Any]
    plan: Plan
    record: Record
    migrates: bool


class Planned:
    """One checked node: what to call with which arguments.

    Attributes:
        known: What to call.
        path: Where the node is in the spec.
        atoms: Arguments that are text, numbers, booleans or None.
        parts: All other arguments: checked nodes, containers of them, and values; in the order of the signature.
        written: The data of arguments that is not what they are called with.
        alive: Why the node cannot be written as data; empty if it can.
        kind: What a function must return, where the annotation is narrower than the registry; else None.
        order: The names as they were given, where the factory can see their order; else None.
    """

    __slots__ = ("alive", "atoms", "kind", "known", "order", "parts", "path", "written")

    def __init__(self, known: Known, path: Path) -> None:
        self.known, self.path = known, path
        self.atoms: dict[str, Any] = {}
        self.parts: dict[str, Any] = {}
        self.written: dict[str, Any] = {}
        self.alive = ""
        self.kind: type | None = None
        self.order: list[str] | None = None

    def note(self, name: str, form: Any) -> None:
        """Remember how the argument *name* is written, or that it cannot be."""
        if isinstance(form, Alive):
            self.alive = self.alive or f"its argument {name!r} was passed alive: {form.reason}"
        else:
            self.written[name] = form

    def resolved(self) -> dict[str, Any] | str:
        """Return the data of the node with versions and defaults written out, or why it has none."""
        if self.alive:
            return self.alive
        data: dict[str, Any] = {"type": self.known.entry.ref}
        parameters = self.known.plan.parameters
        names = [*parameters]
        if self.known.plan.extras is not None:
            names += [name for name in self.order or () if name not in parameters]
        for name in names:
            if name in self.atoms:
                data[name] = self.atoms[name]
            elif name in self.written:
                value = _resolved(self.written[name])
                if isinstance(value, Alive):
                    return f"its argument {name!r} was passed alive: {value.reason}"
                data[name] = value
            elif name in parameters and parameters[name].written is not ABSENT:
                data[name] = copy_plain(parameters[name].written)
        return data


class Many:
    """A container of checked nodes and values: a mapping if there are keys, otherwise what *make* makes of a list."""

    __slots__ = ("items", "keys", "make")

    def __init__(
        self,
        make: Callable[[list[Any]], Any],
        items: list[Any],
        keys: list[str] | None = None,
    ) -> None:
        self.make, self.items, self.keys = make, items, keys


class Given(NamedTuple):
    """A value beside nested specs, the data it is written as, and what checked it."""

    value: Any
    form: Any
    validator: Validator


class Alive(NamedTuple):
    """In place of data: why there is none."""

    reason: str


def written_form(value: Any) -> Any:
    """Return how a checked value is written: data with checked nodes in it, or `Alive`. It holds no live object."""
    if isinstance(value, Planned):
        return value
    if isinstance(value, Given):
        return value.form
    if isinstance(value, Many):
        forms = [written_form(item) for item in value.items]
        odd = next((form for form in forms if isinstance(form, Alive)), None)
        if odd is not None:
            return odd
        return forms if value.keys is None else dict(zip(value.keys, forms, strict=True))
    return plain_form(value)


def plain_form(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return *value* as data, `Alive` if it has no such form; what was itself built is written as its spec."""
    if type(value) in ATOMS:
        return value
    from mlkit.registry._provenance import written_of

    known = written_of(value)
    if isinstance(known, dict):
        return known
    if isinstance(known, str):
        return Alive(known)
    if depth == 0:  # or it holds itself
        return Alive(f"it is nested deeper than {MAX_DEPTH} levels")
    try:
        if type(value) is list or type(value) is tuple:
            return _all_forms(value, depth)
        if type(value) is dict:
            forms = _all_forms(value.values(), depth)
            return (
                forms
                if isinstance(forms, Alive)
                else as_plain(dict(zip(value, forms, strict=True)))
            )
        return as_plain(value)
    except NotPlainError as error:
        return Alive(str(error))


def _all_forms(values: Iterable[Any], depth: int) -> list[Any] | Alive:
    """Return the forms of *values*, or of the first that has none; what holds itself is not looked at any further."""
    forms = []
    for value in values:
        form = plain_form(value, depth - 1)
        if isinstance(form, Alive):
            return form
        forms.append(form)
    return forms


def _resolved(form: Any) -> Any:
    """Return *form* with data for the nodes in it."""
    if isinstance(form, Planned):
        data = form.resolved()
        return Alive(data) if isinstance(data, str) else data
    if type(form) is list:
        items = [_resolved(item) for item in form]
        return next((item for item in items if isinstance(item, Alive)), items)
    if type(form) is dict:
        made = {key: _resolved(item) for key, item in form.items()}
        return next((item for item in made.values() if isinstance(item, Alive)), made)
    return form
