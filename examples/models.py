"""Two versions of a model: saved, promoted by a gate, rolled back, and traced to the run that made them."""

from __future__ import annotations

import tempfile

import numpy as np

from mlkit.errors import ChecksFailedError
from mlkit.models import ModelStore, ModelVersion


class Line:
    """The smallest model with a state: y = a x + b."""

    def __init__(self) -> None:
        self.weights = np.zeros(2)

    def fit(self, x: np.ndarray, y: np.ndarray) -> Line:
        """Fit by least squares."""
        self.weights = np.polyfit(x, y, 1)
        return self

    def error(self, x: np.ndarray, y: np.ndarray) -> float:
        """Return the mean absolute error."""
        return float(np.abs(np.polyval(self.weights, x) - y).mean())

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the weights."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take the weights."""
        self.weights = state["weights"]


def main() -> None:
    """Run the example."""
    rng = np.random.default_rng(7)
    x = rng.uniform(0, 10, 400)
    y = 3 * x + 1 + rng.normal(0, 0.5, 400)
    train, test = slice(0, 300), slice(300, 400)

    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(folder, who="example")

        def precise_enough(candidate: ModelVersion) -> bool | str:
            error = candidate.metrics["error"]
            return error < 0.5 or f"error {error:.2f} is not below 0.5"

        for run, n_rows in (("run-a", 300), ("run-b", 2)):
            model = Line().fit(x[train][:n_rows], y[train][:n_rows])
            error = model.error(x[test], y[test])
            version = store.save(
                "line", model, spec={"type": "line"}, run=run, metrics={"error": error}
            )
            try:
                store.promote("line", version, to="champion", checks=[precise_enough])
                print(f"{version.ref} from {run}: promoted, error {error:.2f}")
            except ChecksFailedError as refusal:
                print(refusal)

        store.promote("line", 2, to="champion", why="somebody was in a hurry")
        store.rollback("line", "champion", expect=2, why="answers were off")
        champion = store.get("line@champion")
        served = store.load(champion, build=lambda spec: {"line": Line}[spec["type"]]())
        print(
            f"champion: {champion.ref}, made by {champion.run}, error {served.error(x[test], y[test]):.2f}"
        )
        for change in store.history("line"):
            print(f"  {change.sequence}. {change.kind} {change.version} {change.why}".rstrip())


if __name__ == "__main__":
    main()
