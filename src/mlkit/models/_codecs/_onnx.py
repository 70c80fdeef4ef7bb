"""ONNX models, as one message of Protocol Buffers: data that a runtime interprets, with nothing to run on the way in."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any, final

from mlkit._optional import require
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OnnxCodec"]

_MAX_BYTES = (1 << 31) - 1


@final
class OnnxCodec:
    """The codec `"onnx"`: an `onnx.ModelProto`, whole. Weights that lie in other files are refused either way."""

    __slots__ = ()
    name = "onnx"

    def handles(self, model: object, /) -> bool:
        """Return whether *model* is an `onnx.ModelProto`."""
        onnx = sys.modules.get("onnx")  # whoever has one has imported it
        return onnx is not None and isinstance(model, onnx.ModelProto)

    def write(self, model: Any, file: IO[bytes], /) -> None:
        """Write a model."""
        if not model.ir_version:
            raise ConfigurationError(
                "save(model)", "an empty one", "an ONNX model with an ir_version"
            )
        if outside := _outside(model):
            raise ConfigurationError(
                "save(model)",
                f"an ONNX model whose tensor {outside!r} lies in another file",
                "one that holds its weights",
                hint="load it with onnx.load(path, load_external_data=True)",
            )
        if (size := model.ByteSize()) > _MAX_BYTES:
            raise ConfigurationError(
                "save(model)", f"{size} bytes", f"an ONNX model of at most {_MAX_BYTES} bytes"
            )
        file.write(model.SerializeToString(deterministic=True))

    def read(self, file: IO[bytes], /) -> Any:
        """Return the model in *file*."""
        onnx = require("onnx", extra="onnx", feature="loading an ONNX model")
        model = onnx.ModelProto.FromString(file.read())
        if not model.ir_version:  # no bytes at all are a message, too
            raise ValueError("it has no ir_version")
        if outside := _outside(model):
            raise ValueError(f"its tensor {outside!r} lies in another file")
        return model


def _outside(model: Any) -> str | None:
    """Return the name of a tensor whose data is in another file, or None."""
    onnx = require("onnx", extra="onnx", feature="an ONNX model")
    external = onnx.TensorProto.EXTERNAL
    nodes = [node for function in model.functions for node in function.node]
    tensors = [*_tensors_of(model.graph), *_tensors_in(nodes)]
    for training in model.training_info:
        tensors += [*_tensors_of(training.initialization), *_tensors_of(training.algorithm)]
    found = (t for t in tensors if t.data_location == external or t.external_data)
    return next((tensor.name or "(unnamed)" for tensor in found), None)


def _tensors_of(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from _sparse(graph.sparse_initializer)
    yield from _tensors_in(graph.node)


def _tensors_in(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            yield from _sparse([attribute.sparse_tensor, *attribute.sparse_tensors])
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors_of(graph)


def _sparse(tensors: Any) -> Iterator[Any]:
    for tensor in tensors:
        yield tensor.values
        yield tensor.indices
