"""A model's life, from seeds to a rollout that is taken back. This is the file to read, and to copy from.

Every step uses one block of mlkit, and they meet only here: `registry` builds the models from specs, `repro` seeds and
fingerprints, `tracking` records the runs, `models` keeps the versions, `flags` decides who gets which version,
`inference` batches the requests, `resilience` answers when a version cannot.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._clock import current
from mlkit.flags import ErrorRate, Flags, Guard
from mlkit.inference import Batcher, map_batches
from mlkit.models import ModelStore
from mlkit.registry import Registry, Spec, spec_of
from mlkit.repro import Manifest, Seeds, fingerprint, seed_all
from mlkit.resilience import Breaker, Policy, fallback, tier
from mlkit.tracking import start_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import torch

    from mlkit.demo.digits import Digits
    from mlkit.flags import Rollout
    from mlkit.inference import BatcherStats
    from mlkit.models import ModelVersion
    from mlkit.resilience import Answer
    from mlkit.tracking import Delivery, Run

__all__ = [
    "Served",
    "Serving",
    "Trace",
    "Training",
    "register",
    "serve",
    "trace",
    "train_and_store",
]

EPOCHS = 30
WAVE = 50  # requests in flight at once
RAMP = {200: 0.1, 400: 1.0}  # from this request on, this share of the users gets the new version
FAULT_AT = 500  # from this request on, the new version's device is broken

# --- 1. models by name ------------------------------------------------------------------------------------------------

networks: Registry[torch.nn.Module] = Registry("networks")


@networks.register("centroid")
def centroid(n_features: int = 64, n_classes: int = 10) -> Any:
    """Nearest centroid, written as one linear layer: ten multiplications away from free."""
    from torch import nn

    return nn.Sequential(nn.Linear(n_features, n_classes))


@networks.register("mlp")
def mlp(hidden: int, n_features: int = 64, n_classes: int = 10) -> Any:
    """One hidden layer."""
    from torch import nn

    return nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_classes))


# --- 2. train, record, store ------------------------------------------------------------------------------------------


class Training(NamedTuple):
    """What was trained: the store, the manifest, and one version of each model."""

    store: ModelStore
    manifest: Manifest
    data: dict[str, str]
    incumbent: ModelVersion
    candidate: ModelVersion


def train_and_store(
    digits: Digits, seeds: Seeds, out: Path, run: Run, say: Callable[[str], None]
) -> Training:
    """Train both models from specs, each in a run of its own, and store them as versions of one name."""
    import torch

    torch.set_num_threads(1)  # a model this small is slower on two
    seed_all(seeds / "global")
    data = {"train_x": fingerprint(digits.train_x), "train_y": fingerprint(digits.train_y)}
    manifest = Manifest.capture(seeds=seeds, data=data, params={"epochs": EPOCHS})
    store = ModelStore(out / "models")

    def learn(spec: Spec, fit: Callable[[torch.nn.Module, Run], None], why: str) -> ModelVersion:
        name = str(spec.to_dict()["type"])
        with run.child(f"train-{name}") as child:
            # The layers are drawn from a named stream, not from wherever the global generator happens to be.
            torch.manual_seed((seeds / "init" / name).int(63))
            network = networks.build(spec)
            resolved = spec_of(network)
            child.log_params({"spec": resolved.to_dict(), "seed": seeds.root})
            child.set_tags({"spec": resolved.digest, "manifest": manifest.digest, **data})
            fit(network, child)
            accuracy = _accuracy(network, digits.request_x, digits.request_y)
            child.log_metrics({"test_accuracy": accuracy}, step=EPOCHS)
            version = store.save(
                "digits",
                network,
                spec=resolved.to_dict(),
                run=child.id,
                metrics={"test_accuracy": accuracy},
                manifest=manifest.to_dict(facts=False),
                tags={"weights": fingerprint(network.state_dict())},
                why=why,
            )
            child.log_artifact(json.dumps(manifest.to_dict(), indent=1).encode(), "manifest.json")
            child.log_artifact(json.dumps(version.spec).encode(), "model/spec.json")
            child.log_artifact(_safetensors(network), "model/weights.safetensors")
            child.set_tags({"model.ref": version.ref, "model.digest": version.digest})
        say(f"{version.ref}: {name}, accuracy {accuracy:.3f}")
        return version

    incumbent = learn(Spec({"type": "centroid"}), _fit_centroid(digits), "a cheap first model")
    candidate = learn(
        Spec({"type": "mlp", "hidden": 64}), _fit_mlp(digits, seeds, say), "a better one"
    )
    store.promote("digits", incumbent, to="champion", why="the first version")
    store.promote(
        "digits",
        candidate,
        to="challenger",
        checks=[_better_than(incumbent)],
        why="more accurate on requests it has not seen",
    )
    return Training(store, manifest, data, incumbent, candidate)


def _fit_centroid(digits: Digits) -> Callable[[torch.nn.Module, Run], None]:
    def fit(network: Any, child: Run) -> None:
        import torch

        means = torch.stack(
            [
                torch.from_numpy(digits.train_x[digits.train_y == digit].mean(0))
                for digit in range(10)
            ]
        )
        with torch.no_grad():
            # argmin |x - c|^2 = argmax (c.x - |c|^2 / 2)
            network[0].weight.copy_(means)
            network[0].bias.copy_(-(means**2).sum(1) / 2)
        child.log_metrics({"train_accuracy": _accuracy(network, digits.train_x, digits.train_y)})

    return fit


def _fit_mlp(
    digits: Digits, seeds: Seeds, say: Callable[[str], None]
) -> Callable[[torch.nn.Module, Run], None]:
    def fit(network: Any, child: Run) -> None:
        import torch

        x, y = torch.from_numpy(digits.train_x), torch.from_numpy(digits.train_y)
        # Momentum by hand: the first use of torch.optim imports torch's compiler, which takes four times as long as
        # this whole training.
        velocity = [torch.zeros_like(weight) for weight in network.parameters()]
        for epoch in range(EPOCHS):
            order = torch.from_numpy((seeds / "order" / epoch).numpy().permutation(len(x)))
            total = 0.0
            for rows in order.split(64):
                loss = torch.nn.functional.cross_entropy(network(x[rows]), y[rows])
                gradients = torch.autograd.grad(loss, list(network.parameters()))
                with torch.no_grad():
                    for weight, moved, gradient in zip(
                        network.parameters(), velocity, gradients, strict=True
                    ):
                        moved.mul_(0.9).add_(gradient)
                        weight.sub_(moved, alpha=0.05)
                total += loss.item() * len(rows)
            child.log_metrics({"loss": total / len(x)}, step=epoch)
            if epoch % 10 == 9:
                say(f"epoch {epoch + 1} of {EPOCHS}, loss {total / len(x):.4f}")

    return fit


def _accuracy(network: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    import torch

    scores = map_batches(network.eval(), torch.from_numpy(x), batch_size=256, progress=False)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(scores, y, strict=True))
    return right / len(y)


def _better_than(other: ModelVersion) -> Callable[[ModelVersion], str | None]:
    def more_accurate(version: ModelVersion) -> str | None:
        mine, theirs = version.metrics["test_accuracy"], other.metrics["test_accuracy"]
        return (
            None
            if mine > theirs
            else f"accuracy {mine:.3f} is not above the {theirs:.3f} of {other.ref}"
        )

    return more_accurate


def _safetensors(network: torch.nn.Module) -> bytes:
    from safetensors.torch import save

    content: bytes = save(network.state_dict())
    return content


# --- 3. serve, roll out, break, roll back -----------------------------------------------------------------------------


class Served(NamedTuple):
    """One request and how it was answered."""

    request: int
    user: str
    variant: str
    reason: str
    tier: str
    why: str
    model: str
    flags: str
    predicted: int
    right: bool

    @property
    def degraded(self) -> bool:
        """Whether another version answered than the one that the flag chose."""
        return self.tier != self.variant


class Serving(NamedTuple):
    """What the serving phase did."""

    served: list[Served]
    seconds: float
    batches: dict[str, BatcherStats]
    rollout: Rollout


class Device:
    """A model on a device that can break."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.broken = False

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the scores of each row, or fail as broken hardware does."""
        if self.broken:
            raise RuntimeError("device lost")
        scores: torch.Tensor = self.network(batch)
        return scores


def write_flags(path: Path, training: Training) -> None:
    """Write the flag that decides who gets which version, in flagd's file format."""
    variants = {"v1": training.incumbent.ref, "v2": training.candidate.ref}
    flag = {"state": "ENABLED", "variants": variants, "defaultVariant": "v1"}
    path.write_text(json.dumps({"flags": {"digits-model": flag}}, indent=1), encoding="utf-8")


async def serve(
    digits: Digits, training: Training, out: Path, run: Run, say: Callable[[str], None]
) -> Serving:
    """Answer a thousand requests while the new version is rolled out, breaks, and is rolled back."""
    import torch

    write_flags(out / "flags.json", training)
    flags = Flags.from_file(out / "flags.json")
    chosen_model = flags.model("digits-model", default="v1")
    rollout = chosen_model.rollout(
        candidate="v2",
        steps=sorted(RAMP.values()),
        guard=Guard(ErrorRate(max_rate=0.05), alpha=0.01),
    )

    # Each version is loaded by the name the flag gives, verified, rebuilt from its spec, and batched.
    versions = {"v1": training.incumbent, "v2": training.candidate}
    devices = {
        variant: Device(training.store.load(version.ref, build=networks.build).eval())
        for variant, version in versions.items()
    }
    # One bucket: every batch has the same shape, so that a row's bits do not depend on its company.
    batchers = {
        variant: Batcher(device, max_batch_size=32, buckets=[32], name=version.ref)
        for (variant, device), version in zip(devices.items(), versions.values(), strict=True)
    }
    policy = Policy(timeout=5.0, breaker=Breaker(min_calls=10, name="digits v2"))
    v1 = tier(batchers["v1"].submit, name="v1", policy=None)
    v2 = tier(batchers["v2"].submit, name="v2", policy=policy)
    answer_with = {"v1": fallback(v1), "v2": fallback(v2, v1)}

    rows = torch.from_numpy(digits.request_x)

    async def answer(request: int) -> Served:
        user = f"user-{request}"
        decision = chosen_model.details(user)
        variant = decision.variant or "v1"
        found: Answer[torch.Tensor] = await answer_with[variant].explain(rows[request])
        predicted = int(found.value.argmax())
        answered_by = str(found.tier)
        return Served(
            request=request,
            user=user,
            variant=variant,
            reason=decision.reason,
            tier=answered_by,
            why=found.reason,
            model=versions[answered_by].ref,
            flags=flags.digest,
            predicted=predicted,
            right=predicted == int(digits.request_y[request]),
        )

    served: list[Served] = []
    with run.child("serve") as child:
        async with batchers["v1"], batchers["v2"]:
            start = current().monotonic()
            for first in range(0, len(rows), WAVE):
                if first in RAMP:
                    rollout.advance()
                    say(f"request {first}: the new version goes to {RAMP[first]:.0%} of the users")
                if first == FAULT_AT:
                    devices["v2"].broken = True
                    say(f"request {first}: the device of the new version breaks")
                wave = await asyncio.gather(*(answer(first + i) for i in range(WAVE)))
                before = rollout.status
                for one in wave:
                    rollout.observe(one.variant, ok=not one.degraded)
                if rollout.status != before:
                    say(f"request {first + WAVE}: {rollout.status.replace('_', ' ')} by the guard")
                served += wave
                child.log_metrics(
                    {
                        "v2_share": sum(one.tier == "v2" for one in wave) / WAVE,
                        "degraded": sum(one.degraded for one in wave),
                    },
                    step=first,
                )
            seconds = current().monotonic() - start
            stats = {variant: batcher.stats() for variant, batcher in batchers.items()}
        lines = "\n".join(json.dumps(one._asdict()) for one in served)
        child.log_artifact(lines.encode(), "served.jsonl")
    flags.close()
    return Serving(served, seconds, stats, rollout)


# --- 4. walk back from one prediction ---------------------------------------------------------------------------------


class Trace(NamedTuple):
    """One prediction, back to where it came from; `checks` says what was verified on the way."""

    served: Served
    version: ModelVersion
    run: str
    params: dict[str, Any]
    checks: dict[str, bool]


def trace(served: Served, digits: Digits, training: Training, out: Path) -> Trace:
    """Follow digests from a prediction to its version, run, parameters, seeds, data and code, and check each."""
    from mlkit.tracking import read

    version = training.store.get(served.model)
    manifest = Manifest.from_dict(version.manifest or {})
    recorded = read(next((out / "runs").rglob(version.run or "-")))
    # Loading verifies every byte; the prediction is then made again, from the store alone.
    network = training.store.load(version.ref, build=networks.build).eval()
    again = int(_scores(network, digits.request_x[served.request]).argmax())
    checks = {
        "the store's weights and spec are what was saved": recorded.tags["model.digest"]
        == version.digest,
        "the spec is the one the run built": recorded.tags["spec"]
        == Spec(version.spec or {}).digest,
        "the data is what the run was trained on": recorded.tags["train_x"]
        == fingerprint(digits.train_x),
        "code, environment and seeds are the manifest's": recorded.tags["manifest"]
        == manifest.digest,
        "the prediction comes out again": again == served.predicted,
    }
    return Trace(served, version, version.run or "", dict(recorded.params), checks)


def _scores(network: torch.nn.Module, row: np.ndarray) -> torch.Tensor:
    import torch

    (scores,) = map_batches(
        network, torch.from_numpy(row)[None], batch_size=32, buckets=[32], progress=False
    )
    result: torch.Tensor = scores
    return result


def start(out: Path) -> Run:
    """Start the run that everything is recorded in; its shipper delivers to an embedded MLflow meanwhile."""
    return start_run(
        "digits", name="demo", root=out / "runs", sinks=[f"mlflow:sqlite:///{out / 'mlflow.db'}"]
    )


def register(training: Training, out: Path) -> dict[str, str]:
    """Enter the versions and their promotions into MLflow's registry, and return what its aliases point at."""
    from tempfile import TemporaryDirectory

    from mlkit.integrations.mlflow_models import MlflowModelStore

    registry = MlflowModelStore(f"sqlite:///{out / 'mlflow.db'}", cache=out / "cache")
    numbers = {}
    with TemporaryDirectory() as folder:
        for version in training.store.versions("digits"):
            # The same digest there; its files are those of the run that made it.
            exported = training.store.export(version, f"{folder}/{version.number}")
            numbers[version.number] = registry.import_(exported, why="from the folder store").number
    for change in training.store.history("digits"):
        if change.kind == "promoted" and change.alias is not None:
            registry.promote("digits", numbers[change.version], to=change.alias, why=change.why)
    digests = {version.number: version.digest for version in registry.versions("digits")}
    return {f"digits@{alias}": digests[n] for alias, n in registry.aliases("digits").items()}


def finish(run: Run) -> Delivery:
    """Close the run and wait until MLflow has everything."""
    return run.close(timeout=60)
