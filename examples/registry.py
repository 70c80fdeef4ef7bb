"""A model from a config file: checked as a whole, built, traced back to its spec, and built again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from mlkit.errors import SpecError
from mlkit.registry import Registry, Spec, spec_of


class Scaler:
    """What goes before a model."""

    def __call__(self, x: float) -> float:
        """Return the scaled value."""
        raise NotImplementedError


scalers = Registry("scalers", Scaler)
models = Registry("models")


@scalers.register("shift")
class Shift(Scaler):
    """Subtract the mean."""

    def __init__(self, mean: float = 0.0) -> None:
        self.mean = mean

    def __call__(self, x: float) -> float:
        """Return the distance from the mean."""
        return x - self.mean


@models.register("line", version=1)
class Line:
    """A slope, after any number of scalers."""

    def __init__(self, slope: float, steps: list[Annotated[Scaler, scalers]]) -> None:
        self.slope, self.steps = slope, steps

    def __call__(self, x: float) -> float:
        """Return the prediction."""
        for step in self.steps:
            x = step(x)
        return self.slope * x


GOOD = "model:\n  type: line\n  slope: 2\n  steps:\n  - {type: shift, mean: 1.5}\n  - shift\n"
BAD = "model:\n  type: lien\n---\nmodel:\n  type: line\n  slop: 2\n  steps:\n  - {type: shift, mean: no}\n"


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.yaml")
        file.write_text(GOOD)
        model = models.build(Spec.load(file, at="model"))
        print(f"prediction for 4.0: {model(4.0)}")
        spec = spec_of(model)
        print(f"resolved spec, {spec.digest[:19]}:\n{spec.dump()}")
        again = models.build(spec.to_dict())
        print(f"rebuilt from plain data, same answer: {again(4.0) == model(4.0)}")
        for text in BAD.split("---\n"):
            file.write_text(text)
            try:
                models.build(Spec.load(file, at="model"))
            except SpecError as error:
                for problem in error.problems:
                    print(f"refused: {str(problem).removeprefix(folder + '/')}")


if __name__ == "__main__":
    main()
