"""What is wrong with the plugins of a registry, and what would mend it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, final

from mlkit._suggest import clip
from mlkit.errors import EntryError
from mlkit.registry._listing import natural

if TYPE_CHECKING:
    from mlkit.registry._catalogue import Catalogue
    from mlkit.registry._entry import Record

__all__ = ["Problem", "missing_module", "pip_install", "problems_of"]


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


def problems_of(catalogue: Catalogue) -> list[Problem]:
    """Return what is wrong with the plugins of a registry, after importing each that was not."""
    found = list(catalogue.unusable())
    for _, records in catalogue.plugins():
        for record in records:
            found += _wrong(catalogue, record)
    return sorted(found, key=lambda problem: natural(problem.name))


def _wrong(catalogue: Catalogue, record: Record) -> list[Problem]:
    entry = record.entry
    ours = catalogue.table.find(entry.name, entry.version)
    if ours is not None:
        message = (
            f"{ours.described} has the name and comes first: choose another name or version for "
            f"one of them"
        )
        return [Problem(entry.ref, "shadowed", record.distribution, entry.target, message)]
    if record.claims:
        claims = (record, *record.claims)
        message = (
            f"{' and '.join(claim.described for claim in claims)} claim the name: uninstall one of "
            f"them, or register the one you mean under it"
        )
        return [
            Problem(entry.ref, "conflict", claim.distribution, claim.entry.target, message)
            for claim in claims
        ]
    try:
        catalogue.load(record)
    except EntryError as error:
        return [Problem(entry.ref, "broken", record.distribution, entry.target, str(error))]
    return []


def missing_module(record: Record, missing: str) -> str:
    """Return what to say when importing *record* failed because there is no module *missing*."""
    needs = f"it needs {missing!r}, which is not installed"
    if record.said.requires:
        return f"{needs}; install it with:  {pip_install(*record.said.requires)}"
    if not record.distribution:
        return needs
    declared = _requirement(record.distribution, missing)
    if declared is None:
        return f"{needs}, and {record.distribution} does not declare that it does: tell its authors"
    return f"{needs}; install it with:  {pip_install(declared)}"


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


def pip_install(*requirements: str) -> str:
    """Return the command that installs *requirements*."""
    from shlex import quote

    return f"pip install {clip(' '.join(map(quote, requirements)), 160)}"
