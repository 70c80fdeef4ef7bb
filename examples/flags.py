"""A new model version goes to 10 % of the users, then to all; it breaks, and its guard takes it back."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from mlkit.flags import ErrorRate, Flags, Guard

DOCUMENT = {
    "flags": {
        "ranker": {
            "state": "ENABLED",
            "variants": {"v1": "models:/ranker/1", "v2": "models:/ranker/2"},
            "defaultVariant": "v1",
            "targeting": {"if": [{"==": [{"var": "plan"}, "legacy"]}, "v1"]},
        }
    }
}


def fails(uri: str, request: int, rng: random.Random) -> bool:
    """Stand in for a model: version 2 breaks at request 1,200."""
    return rng.random() < (0.6 if uri == "models:/ranker/2" and request >= 1_200 else 0.01)


def main() -> None:
    """Run the example."""
    rng = random.Random(7)  # noqa: S311 - a simulation
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flags.json"
        path.write_text(json.dumps(DOCUMENT))
        flags = Flags.from_file(path)
        ranker = flags.model("ranker", default="v1")
        guard = Guard(ErrorRate(max_rate=0.05), alpha=0.01)
        rollout = ranker.rollout("v2", steps=[0.1, 1.0], guard=guard)

        for request in range(2_000):
            if request in {200, 1_000}:
                rollout.advance()
            user = f"user-{rng.randrange(500)}"
            answer = ranker.details(user, plan=rng.choice(["free", "pro", "legacy"]))
            rollout.observe(answer.variant, ok=not fails(answer.value, request, rng))
            if rollout.status == "rolled_back":
                print(f"request {request}: rolled back")
                break

        for decision in rollout.history:
            print(f"  {decision.action:12} share {decision.share:4.0%}  {decision.reason}")
        evidence = rollout.history[-1].evidence
        print(
            f"  e-value {evidence['error_rate.e_value']:.0f} >= {evidence['error_rate.threshold']:.0f}"
            f" after {evidence['error_rate.candidate_sum']:.0f} errors"
            f" in {evidence['error_rate.candidate_n']:.0f} requests of v2"
        )
        rollout.save()
        print(
            "another process decides:", Flags.from_file(path).model("ranker", default="v1")("ann")
        )
        print("digest", flags.digest[:19], "saved:", Flags.from_file(path).digest == flags.digest)


if __name__ == "__main__":
    main()
