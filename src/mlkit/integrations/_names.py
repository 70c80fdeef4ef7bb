"""Names that a backend takes, and addresses of backends that are a folder and options."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from mlkit._digest import digest_bytes, short
from mlkit._suggest import did_you_mean, listing
from mlkit.errors import ConfigurationError
from mlkit.tracking._sink import checked_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["address_of", "folder_and_options", "plain_text", "safe_name", "typed"]

_EXACT = 2**53  # the largest integer up to which JavaScript's numbers have each
_MARKED = re.compile(r".*-[0-9a-f]{12}", re.DOTALL)


def safe_name(name: str, is_fine: Callable[[str], bool], limit: int) -> str:
    """Return *name* if it is fine, else one that is, and that no other name is given.

    Args:
        name: What the user calls it.
        is_fine: Whether the backend takes a name as it is; it takes letters, digits, `_`, `-`, `.` and `x` before
            them.
        limit: The longest that it takes.
    """
    if name and len(name) <= limit and is_fine(name) and not _MARKED.fullmatch(name):
        return name
    mark = f"-{short(digest_bytes(name.encode('utf-8', 'surrogatepass')))}"
    body = re.sub(r"[^\w.\-/]", "_", name)[: limit - len(mark) - 1]
    plain = re.sub(r"[^\w\-]", "_", body, flags=re.ASCII)
    tried = (body + mark, plain + mark, f"x{plain}{mark}")
    return next((one for one in tried[:2] if body and is_fine(one)), tried[2])


def plain_text(text: str) -> str:
    """Return *text* as UTF-8 can say it; a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def typed(text: str) -> object:
    """Return the number or truth value that has exactly this text, or the text."""
    if text in {"True", "False"}:
        return text == "True"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if str(value) == text and math.isfinite(value) and abs(value) <= _EXACT:
            return value
    return plain_text(text)


def folder_and_options(
    where: str, folder: object, options: Mapping[str, str | None]
) -> tuple[Path, dict[str, str]]:
    """Return the absolute folder of an address, and its options with those that the caller passes.

    Args:
        where: The constructor's name, for errors.
        folder: The path of a folder, or as text `FOLDER?option=value&...`.
        options: The options that there are, with what the caller passes for them or None.

    Raises:
        ConfigurationError: If that is no folder, or an option is unknown or no text.
    """
    given: dict[str, str] = {}
    if isinstance(folder, str):
        folder, _, query = folder.partition("?")
        given = dict(parse_qsl(query, keep_blank_values=True))
        folder = folder.replace("%3F", "?").replace("%25", "%")
    path = checked_folder(where, folder)
    for name, value in options.items():
        if value is not None:
            given[name] = value
    for name, value in given.items():
        if name not in options:
            known: Sequence[str] = list(options)
            raise ConfigurationError(
                f"{where}(folder)", name, f"options among {listing(known)}",
                hint=did_you_mean(name, known)[2:],
            )  # fmt: skip
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"{where}({name}=...)", value, "a text that is not empty")
    return path, given


def address_of(scheme: str, folder: Path, options: Mapping[str, str]) -> str:
    """Return the address from which `folder_and_options` has come."""
    path = str(folder).replace("%", "%25").replace("?", "%3F")
    query = urlencode(sorted(options.items()), quote_via=quote)
    return f"{scheme}:{path}" + (f"?{query}" if query else "")
