"""Programs of torch: TorchScript and `torch.export`. Loading either runs what the file says, so it is a decision."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import IO, Any, final

from mlkit._optional import require
from mlkit.models._zip import problem_of_archive

__all__ = ["ExportedCodec", "ScriptCodec"]


@final
class ScriptCodec:
    """The codec `"torchscript"`: a `torch.jit.ScriptModule`.

    torch's reader takes no Python from the file, but loading one runs its `__setstate__`, and TorchScript can read and
    overwrite files (`torch.from_file`); torch itself says to load only what is trusted.
    """

    __slots__ = ()
    name = "torchscript"

    def handles(self, model: object, /) -> bool:
        """Return whether *model* is a scripted or traced module."""
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(model, torch.jit.ScriptModule)

    def write(self, model: Any, file: IO[bytes], /) -> None:
        """Write a module."""
        import torch

        torch.jit.save(model, file)

    def read(self, file: IO[bytes], /) -> Any:
        """Return the module in *file*, on the CPU."""
        torch = require("torch", extra="torch", feature="loading a TorchScript module")
        _refuse(file)
        return torch.jit.load(file, map_location="cpu")


@final
class ExportedCodec:
    """The codec `"pt2"`: a `torch.export.ExportedProgram`.

    `torch.export.load` unpickles without limits what the archive marks as pickled, and its example inputs; its symbolic
    shapes go through SymPy, which evaluates text.
    """

    __slots__ = ()
    name = "pt2"

    def handles(self, model: object, /) -> bool:
        """Return whether *model* is an exported program."""
        export = sys.modules.get("torch.export")
        return export is not None and isinstance(model, export.ExportedProgram)

    def write(self, model: Any, file: IO[bytes], /) -> None:
        """Write a program."""
        import torch

        content = BytesIO()  # it goes back to the beginning
        torch.export.save(model, content)
        file.write(content.getbuffer())

    def read(self, file: IO[bytes], /) -> Any:
        """Return the program in *file*."""
        torch = require("torch", extra="torch", feature="loading an exported program")
        _refuse(file)
        return torch.export.load(file)


def _refuse(file: IO[bytes]) -> None:
    if (problem := problem_of_archive(file)) is not None:
        raise ValueError(problem)
