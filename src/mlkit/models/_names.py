"""Names of models and aliases, and the references made of them. Also the paths in a store, so nothing else may pass."""

from __future__ import annotations

import os
from typing import NamedTuple

from mlkit.errors import ConfigurationError

__all__ = ["Reference", "check_alias", "check_name", "check_text", "is_name", "parse"]

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"
_ALIAS = r"[a-z][a-z0-9_-]*"
_PREFIX = r"sha256:[0-9a-f]{4,64}"
_NUMBER = r"[1-9][0-9]{0,17}"
_MAX_NAME = 80  # a "/" takes three characters in a file name, and file names end at 255
_MAX_ALIAS = 40
_MAX_TEXT = 1000
_RESERVED = frozenset({"latest", "none", "null"})
_REF = "'name@alias', 'name@7' or 'name@sha256:...' (at least 4 hex digits)"


class Reference(NamedTuple):
    """A parsed `"name@selector"`; exactly one of the three selectors is set."""

    name: str
    number: int | None = None
    alias: str | None = None
    prefix: str | None = None


def check_name(where: str, name: object) -> str:
    """Return *name* if it may name a model.

    Args:
        where: The argument, for the error.
        name: What the caller passed.
    """
    if not isinstance(name, str) or not is_name(name):
        raise ConfigurationError(
            where,
            name,
            f"a model name: ASCII letters, digits, '-', '_', '.', parts divided by '/', each beginning with a letter "
            f"or digit, at most {_MAX_NAME} characters",
        )
    return name


def is_name(name: str) -> bool:
    """Return whether *name* may name a model.

    Args:
        name: Any text.
    """
    return len(name) <= _MAX_NAME and _matches(_NAME, name)


def check_alias(where: str, alias: object) -> str:
    """Return *alias* if it may name an alias.

    Args:
        where: The argument, for the error.
        alias: What the caller passed.
    """
    if alias == "latest":
        raise ConfigurationError(
            where,
            alias,
            "an alias that somebody moves by a decision",
            hint="'latest' is whatever was saved last: versions(name)[-1]",
        )
    if (
        not isinstance(alias, str)
        or len(alias) > _MAX_ALIAS
        or alias in _RESERVED
        or not _matches(_ALIAS, alias)
    ):
        raise ConfigurationError(
            where,
            alias,
            f"an alias: lower-case ASCII letters, digits, '-', '_', beginning with a letter, at most {_MAX_ALIAS} "
            f"characters, none of {', '.join(sorted(_RESERVED))}",
        )
    return alias


def check_text(where: str, text: object) -> str:
    """Return *text* if it is a string short enough for the log.

    Args:
        where: The argument, for the error.
        text: What the caller passed.
    """
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        is_run = isinstance(getattr(text, "id", None), str)
        hint = "pass its id" if is_run else ""
        raise ConfigurationError(where, text, f"text of at most {_MAX_TEXT} characters", hint=hint)
    return text


def checked_path(where: str, path: object, expected: str) -> str:
    """Return a path as absolute text; nothing looks at the disk.

    Args:
        where: The argument, for the error.
        path: What the caller passed.
        expected: What it should have been, for the error.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError(where, path, expected)
    return os.path.abspath(text)  # noqa: PTH100 - a link is kept


def parse(where: str, ref: object) -> Reference:
    """Return the parts of a reference.

    Args:
        where: The argument, for the error.
        ref: What the caller passed.
    """
    if not isinstance(ref, str):
        raise ConfigurationError(where, ref, f"{_REF}, or a ModelVersion")
    name, at, selector = ref.partition("@")
    if not at:
        hint = "a bare name does not say which version"
        if ref.startswith("models:/"):
            hint = "an address that begins with models:/ is for MlflowModelStore"
        raise ConfigurationError(where, ref, _REF, hint=hint)
    check_name(where, name)
    if _matches(_NUMBER, selector):
        return Reference(name, number=int(selector))
    if selector.startswith("sha256:"):
        if not _matches(_PREFIX, selector):
            raise ConfigurationError(where, ref, _REF)
        return Reference(name, prefix=selector)
    return Reference(name, alias=check_alias(where, selector))


def _matches(pattern: str, text: str) -> bool:
    import re  # and it keeps what it compiled

    return re.fullmatch(pattern, text) is not None
