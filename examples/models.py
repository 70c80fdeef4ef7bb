"""Two versions of a model: saved, promoted by a gate, rolled back, and traced to the run that made them."""

from __future__ import annotations

import tempfile

import numpy as np

from mlkit.errors import ChecksFailedError
from mlkit.models import ModelStore, ModelVersion, PairedGate


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

        def load(version: ModelVersion | str) -> Line:
            return store.load(version, build=lambda spec: {"line": Line}[spec["type"]]())

        def errors(version: ModelVersion) -> np.ndarray:
            return np.abs(np.polyval(load(version).weights, x[test]) - y[test])

        for run, n_rows in (("run-a", 3), ("run-b", 300), ("run-c", 2)):
            model = Line().fit(x[train][:n_rows], y[train][:n_rows])
            metrics = {"error": model.error(x[test], y[test])}
            version = store.save("line", model, spec={"type": "line"}, run=run, metrics=metrics)
            if version.number == 1:
                store.promote("line", version, why="the first")
                continue
            # On the same rows, and by an interval: luck passes 5 times in 100.
            champion = store.get("line@champion")
            gate = PairedGate("error", errors, against=champion, higher_is_better=False)
            try:
                change = store.promote("line", version, expect=champion, checks=[gate])
                print(f"{version.ref}: {change.evidence['error']['why']}")
            except ChecksFailedError as refusal:
                print(refusal)

        store.promote("line", 3, why="somebody was in a hurry")
        store.rollback("line", expect=3, why="answers were off")
        print(store.compare("line@2", "line@3"))
        champion = store.get("line@champion")
        error = load(champion).error(x[test], y[test])
        print(f"champion: {champion.ref}, made by {champion.run}, error {error:.2f}")
        for change in store.history("line"):
            print(f"  {change.sequence}. {change.kind} {change.version} {change.why}".rstrip())


if __name__ == "__main__":
    main()
