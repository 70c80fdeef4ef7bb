"""What a model takes and gives: names, dtypes and shapes, inferred from an example, and asked of each input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._suggest import clip, closest, listing
from mlkit.errors import ConfigurationError, ModelInputError
from mlkit.models._leaves import Leaf, leaves_of, widens
from mlkit.models._plain import plain_mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Field", "Signature", "signature_of"]


class Field(NamedTuple):
    """One array of what a model takes or gives.

    Attributes:
        name: The place: `"age"` of a mapping, a table or a dataclass, `"[0]"` of a tuple, `"image.mask"` further in;
            empty if the array is all there is.
        dtype: `"float32"`, `"int64"`, `"bool"`, `"bfloat16"`, ...; `"string"`, `"datetime"`, `"timedelta"`, `"bytes"`.
        shape: Sizes; None where any will do, as along a batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@final
class Signature(Mapping[str, Any]):
    """What a model takes (`inputs`) and gives (`outputs`); as a mapping, the plain data that is stored.

    Immutable, thread-safe and picklable. Any mapping of plain data may be one; `check` needs the form that `infer` makes.

    Args:
        content: Plain data, such as `to_dict` returned.

    Raises:
        ConfigurationError: If *content* is no mapping of plain data.

    Examples:
        >>> import numpy as np
        >>> signature = Signature.infer(np.zeros((8, 64), "float32"), np.zeros((8, 10)))
        >>> print(signature)
        (float32[?, 64]) -> float64[?, 10]
        >>> signature.check(np.zeros((1, 64), "float32"))
        >>> signature.check(np.zeros((1, 32), "float32"))
        Traceback (most recent call last):
            ...
        mlkit.errors.ModelInputError: the input does not fit the signature
          - the array: is float32[1, 32], must be float32[?, 64]
    """

    __slots__ = ("_content",)

    def __init__(self, content: Mapping[str, Any]) -> None:
        plain = plain_mapping("Signature(content)", content)
        if plain is None:
            raise ConfigurationError("Signature(content)", None, "a mapping of plain data")
        self._content = plain

    @classmethod
    def infer(
        cls,
        example: object,
        output: object | Callable[[Any], object] = None,
        *,
        batched: bool = True,
    ) -> Signature:
        """Return the signature of a model that takes what *example* is.

        Args:
            example: An input: an array, a tensor, a table (pandas), a number, text, or a list of these, which is a batch;
                or a mapping, tuple or dataclass of such.
            output: What the model answers, or the model: a callable is called with *example*, a torch module in
                evaluation mode and without gradients. None if the output is not to be recorded.
            batched: Whether the first axis of each array is a batch, of any size.

        Raises:
            ConfigurationError: If there is no array in it, or something that has no dtype.
        """
        answer = output
        if callable(output) and not hasattr(output, "dtype") and not isinstance(output, Mapping):
            answer = _ask(output, example)
        content = {"inputs": _inferred("infer(example)", example, batched=batched)}
        if answer is not None:
            content["outputs"] = _inferred("infer(output)", answer, batched=batched)
        return cls(content)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """What the model takes.

        Raises:
            ConfigurationError: If the signature is not in the form that `infer` makes.
        """
        return _fields(self._content, "inputs")

    @property
    def outputs(self) -> tuple[Field, ...]:
        """What the model gives; empty if that was not recorded.

        Raises:
            ConfigurationError: If the signature is not in the form that `infer` makes.
        """
        return _fields(self._content, "outputs") if "outputs" in self._content else ()

    def check(self, value: object, *, what: str = "the input") -> None:
        """Refuse an input that is not what the model takes.

        Each array must be there, under its name, with its shape and a dtype that converts to its own without loss
        (NumPy's `"safe"`); a torch tensor must have the very dtype, since torch converts nothing; whole numbers in plain
        lists pass for any numbers. The order of names does not matter. Values are not looked at.

        Args:
            value: The input.
            what: What to call it in the error.

        Raises:
            ModelInputError: With every problem, each naming the column or place.
            ConfigurationError: If the signature is not in the form that `infer` makes.
        """
        _check(what, self.inputs, value)

    def check_output(self, value: object, *, what: str = "the output") -> None:
        """Refuse an answer that is not what the model gives, as `check` does an input.

        Args:
            value: The answer.
            what: What to call it in the error.

        Raises:
            ModelInputError: With every problem.
            ConfigurationError: If the signature says nothing of the output.
        """
        if "outputs" not in self._content:
            raise ConfigurationError("check_output(value)", self, "a signature with outputs")
        _check(what, self.outputs, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the signature as plain data for JSON; a new copy, from which `Signature` makes an equal one."""
        copy: dict[str, Any] = plain_mapping("to_dict", self._content) or {}
        return copy

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __reduce__(self) -> tuple[Any, ...]:
        return Signature, (self._content,)

    def __repr__(self) -> str:
        return f"Signature({clip(self._content, 200)})"

    def __str__(self) -> str:
        try:
            takes = ", ".join(_shown(field) for field in self.inputs)
            gives = ", ".join(_shown(field) for field in self.outputs)
        except ConfigurationError:
            return repr(self)
        return f"({takes})" + (f" -> {gives}" if gives else "")


def signature_of(
    where: str, signature: object, example: object, output: object
) -> dict[str, Any] | None:
    """Return what `save` stores: the signature that was given, or that of the example, or None.

    Args:
        where: The call, for errors.
        signature: What the caller passed.
        example: As for `Signature.infer`.
        output: As for `Signature.infer`.
    """
    if example is None:
        if output is not None:
            raise ConfigurationError(
                f"{where}(output=...)", output, "an example= of the input beside it"
            )
        return plain_mapping(f"{where}(signature=...)", signature)
    if signature is not None:
        raise ConfigurationError(
            f"{where}(example=...)", "an example", "it or signature=, not both"
        )
    return Signature.infer(example, output).to_dict()


def _inferred(where: str, value: object, *, batched: bool) -> list[dict[str, Any]]:
    fields = []
    for name, leaf in leaves_of(where, value).items():
        shape: list[int | None] = list(leaf.shape)
        if batched and shape:
            shape[0] = None
        fields.append({"name": name, "dtype": leaf.dtype, "shape": shape})
    if not fields:
        raise ConfigurationError(where, value, "at least one array, number or text")
    return fields


def _ask(model: Callable[[Any], object], example: object) -> object:
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return model(example)
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            return model(example)
    finally:
        for module in training:
            module.training = True


def _fields(content: Mapping[str, Any], key: str) -> tuple[Field, ...]:
    try:
        return tuple(_field(item) for item in content[key])
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(
            f"signature[{key!r}]",
            content.get(key),
            "a list of {'name': text, 'dtype': text, 'shape': [sizes or None]}, as Signature.infer makes it",
        ) from None


def _field(item: Mapping[str, Any]) -> Field:
    shape = tuple(None if size is None or size == -1 else size for size in item["shape"])
    if not isinstance(item["name"], str) or not isinstance(item["dtype"], str):
        raise TypeError("name or dtype")
    if any(size is not None and (type(size) is not int or size < 0) for size in shape):
        raise ValueError("shape")
    return Field(item["name"], item["dtype"], shape)


def _check(what: str, fields: Sequence[Field], value: object) -> None:
    try:
        leaves = leaves_of(what, value)
    except ConfigurationError as error:
        raise ModelInputError(what, [str(error)]) from None
    problems = list(_problems(fields, leaves))
    if problems:
        raise ModelInputError(what, problems)


def _problems(fields: Sequence[Field], leaves: Mapping[str, Leaf]) -> Iterator[str]:
    wanted = {field.name: field for field in fields}
    extra = [name for name in leaves if name not in wanted]
    for name, field in wanted.items():
        if name not in leaves:
            near = closest(name, extra)
            hint = f"; is it {near[0]!r}?" if near else ""
            yield f"{_place(name)}: is missing, must be {_kind(field.dtype, field.shape)}{hint}"
        elif (problem := _problem(field, leaves[name])) is not None:
            yield f"{_place(name)}: {problem}"
    if extra:
        yield f"{listing(map(_place, extra))}: not in the signature, which has {listing(map(_place, wanted))}"


def _problem(field: Field, leaf: Leaf) -> str | None:
    fits = len(leaf.shape) == len(field.shape) and all(
        size is None or size == got for size, got in zip(field.shape, leaf.shape, strict=True)
    )
    converts = widens(leaf, field.dtype)
    if fits and converts:
        return None
    hint = ""
    if not converts and leaf.dtype.startswith("float") and "int" in field.dtype:
        hint = "; missing values turn whole numbers into floats"
    return f"is {_kind(leaf.dtype, leaf.shape)}, must be {_kind(field.dtype, field.shape)}{hint}"


def _place(name: str) -> str:
    return repr(clip(name, 60)) if name else "the array"


def _shown(field: Field) -> str:
    kind = _kind(field.dtype, field.shape)
    return f"{field.name}: {kind}" if field.name else kind


def _kind(dtype: str, shape: Iterable[int | None]) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in shape)
    return f"{dtype}[{sizes}]"
