"""The command line: `python -m mlkit demo | doctor`.

It never installs anything, and prints an error of mlkit as one readable text, not as a traceback.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its words, without the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit status: 0 if all is well, 1 on trouble, 2 for words that are not understood.
    """
    import mlkit

    parser = argparse.ArgumentParser(
        prog="python -m mlkit", description="Machine-learning-engineering building blocks."
    )
    parser.add_argument("--version", action="version", version=f"mlkit {mlkit.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train, store, roll out, break, roll back and trace a real model",
        description="Train a small model on real data and serve it the way a team would want to.",
    )
    demo.add_argument(
        "--out",
        default="mlkit-demo",
        metavar="DIR",
        help="where everything is written (default: %(default)s)",
    )
    demo.add_argument(
        "--seed", type=_seed, default=7, help="root of every random stream (default: %(default)s)"
    )
    demo.add_argument("--json", action="store_true", help="print the report as JSON")

    doctor = commands.add_parser(
        "doctor",
        help="say what is installed, what is missing and what threatens results",
        description="Look at this environment and say what is wrong with it. Exit status 1 on trouble.",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")

    options = parser.parse_args(argv)
    from mlkit.errors import MlkitError

    try:
        if options.command == "demo":
            from mlkit.demo import run_demo

            return run_demo(options.out, seed=options.seed, as_json=options.json)
        from mlkit.cli.doctor import run_doctor

        return run_doctor(as_json=options.json)
    except MlkitError as error:
        print(f"mlkit {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mlkit {options.command}: interrupted", file=sys.stderr)
        return 130


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)
