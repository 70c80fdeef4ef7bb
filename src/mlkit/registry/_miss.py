"""What to say when a name is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlkit.errors import UnknownNameError
from mlkit.registry._entry import parse_ref
from mlkit.registry._unimported import find_definition

if TYPE_CHECKING:
    from mlkit.registry._catalogue import Catalogue

__all__ = ["unknown"]

_HINT = "(if it is defined, was the module that registers it imported?)"


def unknown(catalogue: Catalogue, ref: str) -> UnknownNameError:
    """Return the error of a miss: with the nearest names or versions, and where the name is defined."""
    name, at, _ = ref.partition("@")
    versions = catalogue.versions(name) if at else []
    known = [record.entry.ref for record in versions] or catalogue.words()
    parsed, registry = parse_ref(ref), catalogue.registry()
    defined_at = advice = ""
    if parsed is not None and registry is not None:
        defined_at, advice = find_definition(registry, *parsed)
    return UnknownNameError(catalogue.name, ref, known, hint=advice or _HINT, defined_at=defined_at)
