"""What the demo says at its end, and the picture that it draws."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlkit._digest import digest, short
from mlkit._optional import require
from mlkit.demo.story import FAULT_AT, RAMP, WAVE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.demo.story import Serving, Trace, Training
    from mlkit.models import ModelVersion
    from mlkit.tracking import Delivery

__all__ = ["draw", "fingerprint_of", "read_back", "render", "summarise"]


def fingerprint_of(training: Training, serving: Serving) -> str:
    """Return one digest over all that must come out the same again: data, specs, weights, decisions, answers."""

    def essence(version: ModelVersion) -> dict[str, Any]:
        return {
            "spec": version.spec,
            "weights": version.tags["weights"],
            "metrics": dict(version.metrics),
        }

    return digest(
        {
            "data": training.data,
            "versions": [essence(training.incumbent), essence(training.candidate)],
            "served": [
                (one.user, one.variant, one.reason, one.tier, one.predicted)
                for one in serving.served
            ],
        }
    )


def read_back(out: Path, training: Training, registered: Mapping[str, str]) -> dict[str, Any]:
    """Ask MLflow, with its own client, what it knows of the run that trained the new version, and of the versions."""
    mlflow = require("mlflow", extra="demo", feature="reading the run back")
    place = f"sqlite:///{out / 'mlflow.db'}"
    client = mlflow.MlflowClient(place, registry_uri=place)
    experiment = client.get_experiment_by_name("digits")
    wanted = f"tags.`model.digest` = '{training.candidate.digest}'"
    (run,) = client.search_runs([experiment.experiment_id], wanted)
    return {
        "run_id": run.info.run_id,
        "params": dict(run.data.params),
        "final_loss": run.data.metrics["loss"],
        "losses": len(client.get_metric_history(run.info.run_id, "loss")),
        "model_files": [file.path for file in client.list_artifacts(run.info.run_id, "model")],
        "registry": {ref: _seen(client, ref, digest) for ref, digest in registered.items()},
    }


def _seen(client: Any, ref: str, digest: str) -> str:
    """Return what MLflow's own client finds by an alias, checked against the digest."""
    found = client.get_model_version_by_alias(*ref.split("@"))
    return f"version {found.version}" if found.tags["mlkit.digest"] == digest else "NOT TRUE"


def summarise(
    training: Training,
    serving: Serving,
    found: Trace,
    mlflow: Mapping[str, Any],
    delivery: Delivery,
) -> dict[str, Any]:
    """Collect the figures of the report as plain data."""
    served, n = serving.served, len(serving.served)
    batches = sum(stats.n_batches for stats in serving.batches.values())
    rows = sum(stats.n_done + stats.n_failed for stats in serving.batches.values())
    return {
        "accuracy": {
            "v1 (nearest centroid)": training.incumbent.metrics["test_accuracy"],
            "v2 (neural network)": training.candidate.metrics["test_accuracy"],
            "served": sum(one.right for one in served) / n,
        },
        "requests": n,
        "requests_per_second": n / serving.seconds,
        "mean_batch_size": rows / batches,
        "answered_by": {tier: sum(one.tier == tier for one in served) / n for tier in ("v1", "v2")},
        "degraded": sum(one.degraded for one in served),
        "failed": n - len(served),
        "rollout": [
            {
                "action": decision.action,
                "share": decision.share,
                "reason": decision.reason,
                **decision.evidence,
            }
            for decision in serving.rollout.history
        ],
        "trace": {
            "request": found.served.request,
            "predicted": found.served.predicted,
            "variant": found.served.variant,
            "reason": found.served.reason,
            "flags": found.served.flags,
            "version": found.version.ref,
            "digest": found.version.digest,
            "run": found.run,
            "manifest": training.manifest.digest,
            "checks": found.checks,
        },
        "mlflow": dict(mlflow),
        "delivery": {"delivered": delivery.delivered, "pending": delivery.pending},
        "fingerprint": fingerprint_of(training, serving),
    }


def render(report: Mapping[str, Any], out: Path, previous: str | None) -> str:
    """Return the report as text for a person."""
    accuracy, trace, mlflow = report["accuracy"], report["trace"], report["mlflow"]
    shares = ", ".join(f"{tier} {share:.1%}" for tier, share in report["answered_by"].items())
    same = (
        ""
        if previous is None
        else (
            "  (identical to the previous run)"
            if previous == report["fingerprint"]
            else "  (NOT that of the previous run)"
        )
    )
    lines = [
        "",
        f"accuracy     {', '.join(f'{name} {value:.3f}' for name, value in accuracy.items())}",
        f"served       {report['requests']:,} requests at {report['requests_per_second']:,.0f} a second, mean batch {report['mean_batch_size']:.1f}",
        f"answered by  {shares}; {report['degraded']} degraded answers, {report['failed']} failures",
        *(
            f"rollout      {decision['action']} to {decision['share']:.0%}: {decision['reason']}"
            for decision in report["rollout"]
        ),
        f"trace        request {trace['request']} was answered {trace['predicted']!r}",
        f"             because flags {short(trace['flags'])} gave {trace['variant']} ({trace['reason']})",
        f"             which is {trace['version']}, {short(trace['digest'])}",
        f"             trained by run {trace['run']}",
        f"             from code, data, seeds and environment {short(trace['manifest'])}",
        *(
            f"             {'ok' if passed else 'NOT TRUE:'} {claim}"
            for claim, passed in trace["checks"].items()
        ),
        f"mlflow       run {mlflow['run_id']}: {mlflow['losses']} losses, {', '.join(mlflow['model_files'])}",
        f"             registry: {', '.join(f'{ref} is {found}' for ref, found in mlflow['registry'].items())}",
        f"fingerprint  {report['fingerprint']}{same}",
        "",
        f"in {out}:  report.json  rollout.png  flags.json  models/  runs/  mlflow.db",
        f"look:  {_mlflow()} ui --backend-store-uri sqlite:///{out / 'mlflow.db'}",
    ]
    return "\n".join(lines)


def _mlflow() -> str:
    """Return the command as the reader's shell will find it."""
    found = Path(sys.prefix, "bin", "mlflow")
    if shutil.which("mlflow") == str(found) or not found.exists():
        return "mlflow"
    return str(found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found)


def draw(serving: Serving, path: Path) -> None:
    """Draw who answered over the course of the rollout."""
    # Not pyplot: it costs a second, and would choose a backend for the whole process.
    figures = require("matplotlib.figure", extra="demo", feature="the picture of the rollout")
    waves = [serving.served[first : first + WAVE] for first in range(0, len(serving.served), WAVE)]
    starts = [wave[0].request for wave in waves]
    shares = {
        "v2": [sum(one.tier == "v2" for one in wave) / WAVE for wave in waves],
        "v1, as chosen": [
            sum(one.tier == "v1" and not one.degraded for one in wave) / WAVE for wave in waves
        ],
        "v1, in place of v2": [sum(one.degraded for one in wave) / WAVE for wave in waves],
    }
    figure = figures.Figure(figsize=(8, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.stackplot(
        [*starts, len(serving.served)],
        *([*share, share[-1]] for share in shares.values()),
        labels=list(shares),
        colors=["#2a6fbb", "#c9d6e6", "#d9822b"],
        step="post",
    )
    for request, share in RAMP.items():
        ax.annotate(f"{share:.0%}", (request, 1.02), ha="center", fontsize=8, annotation_clip=False)
    ax.annotate("v2 breaks", (FAULT_AT, 1.02), ha="center", fontsize=8, annotation_clip=False)
    ax.set(xlim=(0, len(serving.served)), ylim=(0, 1), xlabel="request", ylabel="share of answers")
    ax.legend(loc="lower right", fontsize=8, framealpha=1)
    figure.savefig(path, dpi=120)
