"""JSON variants as objects of a type that pydantic knows."""

from __future__ import annotations

from copy import deepcopy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError
from mlkit.flags._evaluator import thaw
from mlkit.flags._flag import Details, Flag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlkit.flags._assign import Assignment

__all__ = ["MisfitError", "SchemaFlag", "SchemaKind"]

T = TypeVar("T")
_JSON = frozenset({MappingProxyType, dict, tuple, list, str, int, float, bool, type(None)})


class MisfitError(ValueError):
    """A variant does not fit its schema.

    Args:
        message: What is wrong.
        steps: Where in the variant.
    """

    def __init__(self, message: str, steps: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.steps = steps


@final
class SchemaKind(Generic[T]):
    """An object of a type that pydantic can make of JSON.

    Args:
        schema: A model of pydantic, a dataclass or a `TypedDict`.

    Raises:
        ConfigurationError: If it is none of these.
    """

    name = "json"
    names_default = False

    def __init__(self, schema: type[T]) -> None:
        from pydantic import BaseModel, TypeAdapter
        from pydantic.errors import PydanticUserError

        expected = "a model of pydantic, a dataclass or a TypedDict"
        if not isinstance(schema, type) or schema in _JSON:
            raise ConfigurationError("Flags.json(schema=...)", schema, expected)
        try:
            self._adapter = TypeAdapter(schema)
        except (PydanticUserError, TypeError, NameError) as error:
            raise ConfigurationError("Flags.json(schema=...)", schema, expected) from error
        self.schema = schema
        settings: Any = getattr(schema, "__dataclass_params__", None)
        if issubclass(schema, BaseModel):
            self._frozen = bool(schema.model_config.get("frozen"))
        else:
            self._frozen = bool(getattr(settings, "frozen", False))

    @property
    def wanted(self) -> str:
        """What it accepts, for messages."""
        return f"a {self.schema.__name__}, or JSON for one"

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> T:
        del variant, metadata
        from msgspec.json import encode
        from pydantic import ValidationError

        try:
            # As JSON, so that dates, tuples and sets may be written as JSON writes them.
            if type(value) in _JSON:
                made = self._adapter.validate_json(encode(thaw(value)))
            else:
                made = self._adapter.validate_python(value)
            return self.fresh(made)
        except ValidationError as error:
            raise self._misfit(error) from None
        except Exception as error:
            # What a validator of the user's raises is their variant's trouble, not the caller's.
            text = f"{type(error).__name__} in making a {self.schema.__name__}"
            raise MisfitError(text) from error

    def fresh(self, value: T) -> T:
        """Return an object that may be changed without changing *value*: itself if nothing in it can be."""
        if self._frozen:
            try:
                hash(value)
            except TypeError:  # a list in it, say
                pass
            else:
                return value
        return deepcopy(value)

    def _misfit(self, error: Any) -> MisfitError:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        steps = tuple(found[0]["loc"])
        place = f"{'.'.join(map(str, steps))}: " if steps else ""
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        reason = f"{clip(place, 100)}{clip(found[0]['msg'], 160)}{more}"
        return MisfitError(f"no {self.schema.__name__}: {reason}", steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return SchemaKind, (self.schema,)


@final
class SchemaFlag(Flag[T]):
    """A handle whose values could be changed: who asks gets one of their own."""

    # Methods of `Flag` are replaced, so that no other handle pays for the question whether to copy.
    __slots__ = ()

    def __call__(self, unit: str | int | None = None, /, **attributes: object) -> T:
        return self._fresh(self._decide(unit, attributes)).value

    def details(self, unit: str | int | None = None, /, **attributes: object) -> Details[T]:
        return self._fresh(self._decide(unit, attributes))

    def assign(
        self, units: Iterable[str | int], table: object = None, /, **columns: Iterable[object]
    ) -> Assignment[T]:
        from mlkit.flags._assign import Assignment

        made = super().assign(units, table, **columns)
        return Assignment(made.codes, tuple(map(self._fresh, made.answers)))

    def _fresh(self, made: Details[T]) -> Details[T]:
        kind: Any = self.kind
        value = kind.fresh(made.value)
        return made if value is made.value else made._replace(value=value)
