"""`python -m mlkit demo`: train a small real model and serve it the way a team would want to."""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words.

    Args:
        parser: The command's own parser.
    """
    parser.description = (
        "Train a small model on real data and serve it the way a team would want to."
    )
    parser.add_argument(
        "--out",
        default="mlkit-demo",
        metavar="DIR",
        help="where everything is written (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=_seed, default=7, help="root of every random stream (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the demo.

    Args:
        options: The words, parsed.

    Returns:
        The exit status.
    """
    from mlkit.demo import run_demo

    return run_demo(options.out, seed=options.seed, as_json=options.json)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)
