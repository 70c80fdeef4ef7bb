"""What is wrong with the plugins of a registry, and what would mend it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, final

from mlkit._suggest import clip

if TYPE_CHECKING:
    from mlkit.registry._entry import Record

__all__ = ["Problem", "missing_module"]


@final
class Problem(NamedTuple):
    """One thing wrong with a plugin, as `Registry.problems` lists it. Immutable, thread-safe, picklable.

    Attributes:
        name: The entry, `name@N`; the name as it is declared where that can be none.
        kind: `"broken"` (it cannot be imported, or is not what the registry holds), `"conflict"` (two distributions
            claim the name), `"shadowed"` (code registered the name and version, and comes first) or `"invalid"` (its
            name or target can be none).
        distribution: The installed distribution that declares it; empty if its metadata does not say.
        target: Where it should be, `"module:attribute"`.
        message: What is wrong, and what to do.

    Examples:
        >>> from mlkit.registry import Registry
        >>> Registry("models", entry_points="mypkg.models").problems()
        []
    """

    name: str
    kind: str
    distribution: str
    target: str
    message: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.distribution or 'unknown distribution'}): {self.message}"


def missing_module(record: Record, missing: str) -> str:
    """Return what to say when importing *record* failed because there is no module *missing*."""
    needs = f"it needs {missing!r}, which is not installed"
    if record.said.requires:
        return f"{needs}; install it with:  pip install {_line(*record.said.requires)}"
    if not record.distribution:
        return needs
    declared = _requirement(record.distribution, missing)
    if declared is None:
        return f"{needs}, and {record.distribution} does not declare that it does: tell its authors"
    return f"{needs}; install it with:  pip install {_line(declared)}"


def _requirement(distribution: str, missing: str) -> str | None:
    """Return what to install for *distribution* to have the module *missing*, as far as its metadata says."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return None
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        if name is None or _normal(name[0]) != _normal(missing.partition(".")[0]):
            continue
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", line)
        return f"{distribution}[{extra[1]}]" if extra else distribution
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _line(*requirements: str) -> str:
    from shlex import quote

    return clip(" ".join(map(quote, requirements)), 160)
