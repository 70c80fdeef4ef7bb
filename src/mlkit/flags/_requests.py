"""What a request under a rollout is checked for: its variant, its unit, and whether the ramp assigned it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit._digest import digest_bytes
from mlkit.errors import ConfigurationError
from mlkit.flags._coerce import ContextError
from mlkit.flags._flag import as_unit
from mlkit.flags._progress import one_of
from mlkit.flags._ramp import before_ramp
from mlkit.flags._scope import view

if TYPE_CHECKING:
    from mlkit.flags._definition import Definition
    from mlkit.flags._store import Store

__all__ = ["Requests"]


@final
class Requests:
    """The requests of one flag, as far as a rollout has to know them.

    Args:
        store: The flags.
        key: The flag.
        variants: Those that it had when the rollout was made; a request may have been decided before a reload.
    """

    def __init__(self, store: Store, key: str, variants: frozenset[str]) -> None:
        self._store, self._key, self._variants = store, key, variants
        self._ruled: tuple[Definition, Definition] | None = None

    def check_variant(self, variant: str) -> None:
        """Refuse a name that no handle gives; in trouble a handle gives its default, which need not be a variant."""
        if isinstance(variant, str):
            declared = self._store.declared.get(self._key)
            if variant in self._variants or (declared is not None and variant in declared.defaults):
                return
            if view(self._store).values.get(self._key) == variant:
                return
        definition = self._store.document.definitions.get(self._key)
        one_of(
            "observe(variant)",
            variant,
            definition.variants if definition is not None else self._variants,
        )

    def unit(self, unit: str | int | None) -> int | None:
        """Return 64 bits that stand for a unit: what is kept and shared is not the unit itself."""
        if unit is None:
            return None
        try:
            text = as_unit(unit)
        except ContextError:
            raise ConfigurationError("observe(unit=...)", unit, "a text or an int") from None
        hashed = digest_bytes(f"{self._key}\0{text}".encode("utf-8", "surrogatepass"))
        return int(hashed[7:23], 16)

    def inner(self) -> Definition | None:
        """Return the flag with the rule that it has without the ramp, None if it has none."""
        definition = self._store.document.definitions.get(self._key)
        if definition is None:
            return None
        if self._ruled is None or self._ruled[0] is not definition:
            self._ruled = (definition, before_ramp(definition))
        inner = self._ruled[1]
        return None if inner.rule is None else inner

    def by_ramp(self, unit: Any, attributes: dict[str, object]) -> bool:
        """Return whether it is left to the ramp what a unit gets."""
        inner = self.inner()
        if inner is None:
            return True
        try:
            facts = self._store.facts(self._key)
            context = {**attributes, "targetingKey": as_unit(unit), "$flagd": facts}
            return not inner.decide(context)
        except Exception:  # noqa: BLE001 - whatever attributes do, a request is served
            return False
