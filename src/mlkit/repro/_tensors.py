"""What lies in a tensor of torch, of whatever layout: as NumPy arrays of the same bits."""

from __future__ import annotations

from typing import Any

__all__ = ["as_array", "densely", "is_dense", "parts_of", "shape_of"]


def is_dense(torch: Any, tensor: Any) -> bool:
    """Return whether the elements lie in the tensor itself, so that `as_array` can read them."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
        and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    )


def densely(torch: Any, tensor: Any) -> Any:
    """Return a tensor whose elements have another place as one where they lie at their index, if there is one."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout in {torch.strided, torch.jagged} else tensor.to_dense()


def parts_of(torch: Any, tensor: Any) -> list[Any]:
    """Return the tensors that one is made of which is not dense; none if it has no elements (meta, fake)."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.dequantize()]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001 - also where it is not coalesced
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.layout is not torch.strided:  # of oneDNN
        return [tensor.to_dense()]
    inside = getattr(tensor, "__tensor_flatten__", None)  # a subclass that wraps others
    return [] if inside is None else [getattr(tensor, name) for name in inside()[0]]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape; -1 stands for what differs between the rows of a nested tensor."""
    try:
        return tuple(tensor.shape)
    except RuntimeError:
        return (tensor.size(0), *[-1] * (tensor.dim() - 1))


def as_array(torch: Any, tensor: Any) -> Any:
    """Return a dense tensor as a NumPy array of the same bits; types that NumPy lacks as whole numbers."""
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError):
        pass  # not on the CPU, lazily conjugated, all zeros without memory, or of a type that NumPy lacks
    try:
        return tensor.numpy(force=True)
    except TypeError:  # bfloat16, float8, halves of complex numbers
        dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
        return dense.view(sizes[dense.element_size()]).numpy()
