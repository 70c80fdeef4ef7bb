"""From a spec to an object: first check all of it, then call the factories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.registry._built import remember
from mlkit.registry._check import Checker
from mlkit.registry._plain import dotted, problem
from mlkit.registry._planned import Many, Planned
from mlkit.registry._spec import Spec
from mlkit.registry._text import spec_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.registry._entry import Entry
    from mlkit.registry._registry import Registry

__all__ = ["check", "construct", "resolve"]


def check(
    registry: Registry[Any], spec: Spec | Mapping[str, Any] | str
) -> tuple[Planned, list[Entry]]:
    """Check *spec* as a whole.

    Returns:
        What to construct, and the deprecated entries it uses.

    Raises:
        SpecError: If anything is wrong; every problem at once.
    """
    is_spec = isinstance(spec, Spec)
    checker = Checker(keep=not is_spec)
    # The copy belongs to what is built: a factory may keep and change its arguments.
    planned = checker.node(registry, spec.to_dict() if isinstance(spec, Spec) else spec, (), None)
    if checker.problems or planned is None:
        source = spec._source if isinstance(spec, Spec) else None  # noqa: SLF001
        raise spec_error(source, checker.problems) from checker.cause
    return planned, checker.deprecated


def resolve(registry: Registry[Any], spec: Spec) -> dict[str, Any]:
    """Return the data of *spec* with versions pinned and defaults written out."""
    planned, _ = check(registry, spec)
    if isinstance(planned.written, str):  # what a spec holds is plain, and so is what is made of it
        raise spec_error(None, [problem((), "value", planned.written)])
    return planned.written


def construct(planned: Planned) -> Any:
    """Call the factories of a checked spec, inner ones first, in the order of their parameters."""
    arguments = planned.arguments
    for name in planned.nested:
        arguments[name] = _realise(arguments[name])
    try:
        made = planned.plan.call(planned.ready, arguments)
    except Exception as error:
        where = f" at {dotted(planned.path)}" if planned.path else ""
        error.add_note(f"raised while building {planned.entry.ref} of {planned.registry!r}{where}")
        raise
    remember(made, planned.written)
    return made


def _realise(value: Any) -> Any:
    if isinstance(value, Planned):
        return construct(value)
    if isinstance(value, Many):
        return value.make([_realise(item) for item in value.items])
    return value
