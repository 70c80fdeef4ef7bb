"""`python -m mlkit demo`: a model trained, stored, served, rolled out, broken, rolled back and traced, on real data.

The story itself is in `mlkit.demo.story`, a file to read and to copy from.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlkit._clock import current
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_demo"]

_MARKER = ".mlkit-demo"


def run_demo(out: str, *, seed: int = 7, as_json: bool = False) -> int:
    """Run the demo and print its report.

    Args:
        out: The folder for everything it writes. What an earlier demo left there is replaced; a folder with anything
            else in it is refused.
        seed: Root of every random stream.
        as_json: Print the report as JSON.

    Returns:
        0, or 1 if a check of the trace did not hold.

    Raises:
        ConfigurationError: If the folder cannot be written or is not the demo's.
        MissingDependencyError: If torch, mlflow, matplotlib or scikit-learn's data is missing.
    """
    import asyncio
    import json
    from pathlib import Path

    from mlkit._optional import require

    begin = current().monotonic()
    folder, previous = _prepare(out)
    for module in ("torch", "mlflow", "matplotlib"):
        _check_installed(module)

    def say(text: str) -> None:
        print(f"[{current().monotonic() - begin:5.1f} s] {text}", file=sys.stderr, flush=True)

    from mlkit.demo import report, story
    from mlkit.demo.digits import load_digits
    from mlkit.repro import Seeds

    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    say(f"recording into {shown}")
    run = story.start(folder)
    try:
        digits = load_digits(Seeds(seed) / "data")
        say(f"training on {len(digits.train_x)} digits, {len(digits.request_x)} kept as requests")
        training = story.train_and_store(digits, Seeds(seed), folder, run, say)
        serving = asyncio.run(story.serve(digits, training, folder, run, say))
    finally:
        say("waiting for MLflow to have everything")
        require("mlflow", extra="demo", feature="the demo")  # seconds, in which the shipper goes on
        delivery = story.finish(run)
    say("entering the versions into MLflow's registry")
    registered = story.register(training, folder)
    # The first request that everybody's ramp sent to the new version.
    traced = next(
        one for one in serving.served if one.tier == "v2" and one.request >= max(story.RAMP)
    )
    found = story.trace(traced, digits, training, folder)
    report.draw(serving, folder / "rollout.png")
    mlflow = report.read_back(folder, training, registered)
    summary = report.summarise(training, serving, found, mlflow, delivery)
    summary["seconds"] = current().monotonic() - begin
    (folder / "report.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(json.dumps(summary, indent=1) if as_json else report.render(summary, shown, previous))
    say("done")
    return 0 if all(found.checks.values()) else 1


def _prepare(out: str) -> tuple[Path, str | None]:
    """Return an empty folder to write into, and the fingerprint of the demo that was there before."""
    import json
    import shutil
    from pathlib import Path

    folder = Path(out).absolute()
    previous: str | None = None
    try:
        if folder.exists() and any(folder.iterdir()):
            if not (folder / _MARKER).exists():
                raise ConfigurationError(
                    "--out",
                    str(folder),
                    "a new or empty folder",
                    hint="this one holds something else",
                )
            if (folder / "report.json").exists():
                previous = json.loads((folder / "report.json").read_text(encoding="utf-8")).get(
                    "fingerprint"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARKER).write_text(
            "made by python -m mlkit demo; the next one replaces it\n", encoding="utf-8"
        )
    except (OSError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            "--out",
            str(folder),
            "a folder that can be written",
            hint=f"{reason}; choose another with --out DIR",
        ) from None
    return folder, previous


def _check_installed(module: str) -> None:
    from mlkit._optional import installed
    from mlkit.errors import MissingDependencyError

    if not installed(module):
        raise MissingDependencyError(feature="the demo", module=module, extra="demo")
