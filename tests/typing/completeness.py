"""Run `pyright --verifytypes`: every public symbol has a known type and every public object a docstring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Print what is incomplete; return 1 if anything is."""
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--verifytypes",
        "mlkit",
        "--ignoreexternal",
        "--outputjson",
    ]
    # pyright finds the package through the interpreter that is first on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout)
    facts = report["typeCompleteness"]
    for symbol in facts["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            reasons = "; ".join(item["message"].splitlines()[0] for item in symbol["diagnostics"])
            print(f"{symbol['name']}: {reasons}")
    score = facts["completenessScore"]
    counts = {
        key: facts[key] for key in ("missingFunctionDocStringCount", "missingClassDocStringCount")
    }
    print(f"types of {score:.2%} of the public symbols are known; {counts}")
    return int(score < 1 or any(counts.values()))


if __name__ == "__main__":
    sys.exit(main())
