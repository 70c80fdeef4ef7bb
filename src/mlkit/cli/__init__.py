"""The command line: `python -m mlkit COMMAND`, with one module of this package a command.

It never installs anything, and prints an error of mlkit as one readable text, not as a traceback.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# A command is the module `mlkit.cli.<name>` with `add_arguments(parser)` and `run(options) -> int`;
# only the module of the command asked for is imported.
_COMMANDS = {
    "demo": "train, store, roll out, break, roll back and trace a real model",
    "doctor": "say what is installed, what is missing and what threatens results",
    "flags": "check flag files, and say what a new one changes, why a flag answers so, and what may go",
    "models": "list, show, promote, roll back, verify and export versions of models",
    "registry": "look into a registry, and check specs without building them",
    "repro": "say what threatens results, what a run was made of, what changed; run it again",
    "tracking": "say where recorded runs stand, deliver what is left of them, and show one",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its words, without the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit status: 0 if all is well, 1 on trouble, 2 for words that are not understood; a command may have others.
    """
    import mlkit

    words = sys.argv[1:] if argv is None else list(argv)
    wanted = next((word for word in words if not word.startswith("-")), "")

    parser = argparse.ArgumentParser(
        prog="python -m mlkit", description="Machine-learning-engineering building blocks."
    )
    parser.add_argument("--version", action="version", version=f"mlkit {mlkit.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        if name == wanted:
            import_module(f"mlkit.cli.{name}").add_arguments(command)

    options = parser.parse_args(words)
    from mlkit.errors import MlkitError

    try:
        status: int = import_module(f"mlkit.cli.{options.command}").run(options)
        print(end="", flush=True)  # here, so that a reader who is gone is noticed here
    except MlkitError as error:
        print(f"mlkit {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mlkit {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read it has seen enough, as in `... | head -1`
        _let_go_of_the_output()
        return 141  # as a shell says of a program that SIGPIPE ended
    except OSError as error:  # a full disk, a folder that may not be written
        _let_go_of_the_output()
        print(f"mlkit {options.command}: {error}", file=sys.stderr)
        return 1
    return status


def _let_go_of_the_output() -> None:
    """Drop what is not written yet, which the interpreter would try again, and complain of, when it ends."""
    import os

    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
