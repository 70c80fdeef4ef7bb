"""What a row is made of: the containers that a batch keeps, and the leaves that it stacks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._suggest import article

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Columns",
    "Padded",
    "field_names",
    "is_array",
    "is_model",
    "is_tensor",
    "join_path",
    "map_leaves",
    "rebuild",
    "replace_fields",
    "with_article",
]


class Padded(NamedTuple):
    """Sequences of several lengths as one array: what a leaf that is padded becomes in a batch.

    Attributes:
        values: The sequences, each filled up at its end, `(n, longest, ...)`: an array, or a tensor if the rows' were.
        lengths: How many entries of each row are its own, `(n,)`, 64-bit integers of the same library.

    Examples:
        >>> import numpy as np
        >>> from mlkit.inference import collate
        >>> tokens = collate([np.array([7, 8, 9]), np.array([5])], pad=0)
        >>> tokens.values.tolist()
        [[7, 8, 9], [5, 0, 0]]
        >>> tokens.mask.tolist()
        [[True, True, True], [True, False, False]]
    """

    values: Any
    lengths: Any

    @property
    def mask(self) -> Any:
        """True where an entry is a row's own, `(n, longest)`, of the same library and device as `lengths`."""
        longest = self.values.shape[1]
        if is_tensor(self.lengths):
            import torch

            return torch.arange(longest, device=self.lengths.device) < self.lengths[:, None]
        import numpy as np

        return np.arange(longest) < self.lengths[:, None]


@final
class Columns(list[Any]):
    """A row that was a list, as columns. A plain list in a batch or an output has one entry per row instead."""

    __slots__ = ()


def is_tensor(value: object) -> bool:
    """Return whether *value* is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: object) -> bool:
    """Return whether *value* is a numpy array or scalar, without importing numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def is_model(value: object) -> bool:
    """Return whether *value* is an instance of a pydantic model, without importing pydantic."""
    pydantic = sys.modules.get("pydantic.main")
    return pydantic is not None and isinstance(value, pydantic.BaseModel)


def field_names(value: object) -> tuple[str, ...] | None:
    """Return the field names of an instance of a dataclass or pydantic model, else None."""
    if isinstance(value, type):
        return None
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None:
        if not is_model(value):
            return None
        model: Any = value
        return (*type(model).model_fields, *(model.model_extra or ()))
    # ClassVar and InitVar pseudo-fields hold no data of the instance.
    return tuple(name for name, field in fields.items() if field._field_type.name == "_FIELD")  # noqa: SLF001


def rebuild(node: Any, children: Sequence[Any]) -> Any:
    """Return a container like *node* (no list) with other *children*, in the order of its parts."""
    if isinstance(node, Columns):
        return Columns(children)
    if isinstance(node, Mapping):
        if hasattr(node, "__dataclass_fields__"):  # as transformers.ModelOutput, which is both
            return type(node)(**dict(zip(node, children, strict=True)))
        return dict(zip(node, children, strict=True))
    if isinstance(node, tuple):
        make = getattr(type(node), "_make", None)
        if make is not None:
            return make(children)
        if type(node) is tuple:
            return tuple(children)
        try:
            return type(node)(children)
        except TypeError:  # torch.Size, for one, is of whole numbers only
            return tuple(children)
    return replace_fields(node, children)


def replace_fields(node: Any, children: Sequence[Any]) -> Any:
    """Return a copy of *node*, an instance of a dataclass or pydantic model, with other field values.

    `__init__` is not called: what validates one row would refuse a batch of them.
    """
    from copy import copy

    other = copy(node)
    if is_model(node):
        extra = other.model_extra or {}
        for name, child in zip(field_names(node) or (), children, strict=True):
            (extra if name in extra else other.__dict__)[name] = child
        return other
    for name, child in zip(field_names(node) or (), children, strict=True):
        object.__setattr__(other, name, child)
    return other


def map_leaves(fn: Callable[[Any], Any], tree: Any) -> Any:
    """Return *tree* with every leaf replaced by `fn(leaf)`; a plain list's entries are leaves."""
    if isinstance(tree, Mapping):
        return rebuild(tree, [map_leaves(fn, child) for child in tree.values()])
    if isinstance(tree, (Columns, tuple)):
        return rebuild(tree, [map_leaves(fn, child) for child in tree])
    if isinstance(tree, list):
        return [fn(leaf) for leaf in tree]
    names = field_names(tree)
    if names is not None:
        return replace_fields(tree, [map_leaves(fn, getattr(tree, name)) for name in names])
    return fn(tree)


def join_path(path: str, key: object) -> str:
    """Return the name of the part *key* of the leaf or container at *path*."""
    return f"{path}.{key}" if path else str(key)


def with_article(value: object) -> str:
    """Return the type of *value* as words: `"an int"`."""
    return "None" if value is None else article(type(value).__name__)
