"""Train a small model three times: seeded, seeded in another order of calls, and with a fault that `check` names."""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path

import numpy as np

from mlkit.repro import Keyed, KeyedSampler, Manifest, Seeds, check, fingerprint, isolated

SEEDS = Seeds(42)


class Points:
    """Points on a line, with noise that stands for augmentation."""

    def __init__(self, n: int = 64) -> None:
        rows = (SEEDS / "points").numpy()
        self.x = rows.standard_normal((n, 3))
        self.y = self.x @ [1.0, -2.0, 0.5]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, float]:
        return self.x[index] + 0.01 * np.random.standard_normal(3), self.y[index]  # noqa: NPY002


def train(*, stop_after: int | None = None, state: dict | None = None) -> dict:
    """Fit for two epochs; stop after some steps, or go on from the state of a stopped run."""
    data = Keyed(Points(), SEEDS / "data")
    sampler = KeyedSampler(data, SEEDS / "order")
    weights = (SEEDS / "init").numpy().standard_normal(3)
    if state is not None:
        weights = np.array(state["weights"])
        sampler.load_state_dict(state["sampler"])
    step = 0
    for _ in range(sampler.epoch, 2):
        for index in sampler:
            x, y = data[index]
            weights = weights - 0.05 * (x @ weights - y) * x
            sampler.advance(1)
            step += 1
            if step == stop_after:
                return {"weights": weights.tolist(), "sampler": sampler.state_dict()}
    return {"weights": weights.tolist(), "sampler": sampler.state_dict()}


def main() -> None:
    """Show it."""
    whole = train()
    with isolated(1):
        np.random.standard_normal(7)  # noqa: NPY002 - draws elsewhere shift nothing
        again = train()
    resumed = train(state=train(stop_after=37))
    print("weights", np.round(whole["weights"], 6).tolist())
    print("again identical:", fingerprint(again["weights"]) == fingerprint(whole["weights"]))
    print("stopped at step 37 and resumed identical:", resumed["weights"] == whole["weights"])

    runs = count()
    print("a fault:", check(lambda: train(stop_after=5 + next(runs))))

    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest.capture(seeds=SEEDS, params={"rate": 0.05}, data={"x": Points().x})
        manifest.save(Path(folder) / "manifest.json")
        other = Manifest.capture(seeds=SEEDS, params={"rate": 0.06}, data={"x": Points().x})
        print(
            "manifest read back equal:", Manifest.load(Path(folder) / "manifest.json") == manifest
        )
        print("what changed:", *manifest.diff(other))


if __name__ == "__main__":
    main()
