"""How commands print: for people, for programs, and as annotations of a GitHub workflow."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["annotate", "counted", "print_json", "say"]


def say(line: str, *, file: TextIO | None = None) -> None:
    """Print a line, written out what would move a terminal's cursor: keys and messages are of a file.

    Args:
        line: The line.
        file: Where to; the standard output by default.
    """
    file = sys.stdout if file is None else file
    if file is None:  # it was closed before the start, and `print` says nothing then
        return
    encoding = file.encoding or "utf-8"
    shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=file)


def annotate(severity: str, message: str, place: tuple[str, int, int], *, title: str = "") -> None:
    """Print a workflow command of GitHub, with what it wants escaped.

    Args:
        severity: `"error"` or `"warning"`.
        message: What is wrong.
        place: File, line and column, 0 where there is none.
        title: The annotation's title.
    """
    file, line, column = place
    where = {"file": file, "line": line, "col": column, "title": title}
    given = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in where.items() if value)
    print(f"::{severity} {given}::{_escaped(message)}")


def _escaped(value: object, more: str = "") -> str:
    text = str(value).replace("%", "%25")
    for one in f"\r\n{more}":
        text = text.replace(one, f"%{ord(one):02X}")
    return text


def counted(n: int, noun: str) -> str:
    """Return `"1 error"`, `"2 errors"`."""
    return f"{n} {noun}{'s' * (n != 1)}"


def print_json(content: Any) -> None:
    """Print JSON, in ASCII so that every terminal and pipe takes it."""
    import json

    print(json.dumps(content, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    from collections.abc import Mapping

    return dict(value) if isinstance(value, Mapping) else str(value)
