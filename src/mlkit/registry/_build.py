"""From a spec to an object: first check all of it, then call the factories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from mlkit._suggest import article
from mlkit.errors import EntryError
from mlkit.registry._check import Checker
from mlkit.registry._plain import dotted, problem
from mlkit.registry._planned import Given, Many, Planned
from mlkit.registry._provenance import remember, tidy
from mlkit.registry._spec import Spec
from mlkit.registry._target import qualified
from mlkit.registry._text import spec_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.registry._entry import Entry
    from mlkit.registry._registry import Registry

__all__ = ["check", "construct", "explain", "is_a", "refuse", "resolve"]


def check(
    registry: Registry[Any], spec: Spec | Mapping[str, Any] | str
) -> tuple[Planned, dict[Entry, str]]:
    """Check *spec* as a whole.

    Returns:
        What to construct, and the deprecated entries it uses, each with the name of its registry.

    Raises:
        SpecError: If anything is wrong; every problem at once.
    """
    tidy()
    if isinstance(spec, Spec):
        checker = Checker(keep=False, origins=spec._origins)  # noqa: SLF001 - the two are one mechanism
        planned = checker.node(registry, spec._plain_data, (), None)  # noqa: SLF001
    else:
        checker = Checker(keep=True)
        planned = checker.node(registry, spec, (), None)
    if checker.problems or planned is None:
        source = spec._source if isinstance(spec, Spec) else None  # noqa: SLF001
        raise spec_error(source, checker.problems) from checker.cause
    return planned, checker.deprecated


def resolve(registry: Registry[Any], spec: Spec) -> dict[str, Any]:
    """Return the data of *spec* with versions pinned and defaults written out."""
    planned, _ = check(registry, spec)
    data = planned.resolved()
    if isinstance(data, str):  # what a spec holds is plain, and so is what is made of it
        raise spec_error(None, [problem((), "value", data)])
    return data


def construct(planned: Planned) -> Any:
    """Call the factories of a checked spec, inner ones first, in the order of their parameters."""
    known, arguments = planned.known, planned.atoms
    if planned.parts:
        arguments = arguments.copy()
        for name, part in planned.parts.items():
            arguments[name] = construct(part) if type(part) is Planned else _realise(part)
        planned.parts = {}  # they may be live objects, and what is remembered keeps none alive
    if planned.order is not None:
        arguments = {name: arguments[name] for name in planned.order}
    try:
        made = (
            known.ready(**arguments)
            if known.plan.simple
            else known.plan.call(known.ready, arguments)
        )
    except Exception as error:
        explain(error, planned)
        raise
    if planned.kind is not None and not is_a(made, planned.kind):
        refuse(made, planned)
    remember(made, planned)
    return made


def explain(error: Exception, planned: Planned) -> None:
    """Add to *error* which node of a spec was being built."""
    where = f" at {dotted(planned.path)}" if planned.path else ""
    known = planned.known
    error.add_note(f"raised while building {known.entry.ref} of {known.registry!r}{where}")


def refuse(made: Any, planned: Planned) -> NoReturn:
    """Raise because a function returned something else than the annotation says."""
    entry, kind = planned.known.entry, qualified(planned.kind or object)
    where = f" for {dotted(planned.path)}" if planned.path else ""
    reason = f"it returned {article(qualified(type(made)))}, not {article(kind)}{where}"
    raise EntryError(planned.known.registry, entry.ref, target=entry.target, reason=reason)


def is_a(made: Any, kind: type) -> bool:
    """Return whether *made* is a *kind*; true where that cannot be known."""
    try:
        return isinstance(made, kind)
    except TypeError:  # a protocol that cannot be checked at run time
        return True


def _realise(value: Any) -> Any:
    if isinstance(value, Planned):
        return construct(value)
    if isinstance(value, Given):
        return value.value
    if isinstance(value, Many):
        items = [_realise(item) for item in value.items]
        return (
            value.make(items) if value.keys is None else dict(zip(value.keys, items, strict=True))
        )
    return value
