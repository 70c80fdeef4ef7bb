"""What a folder store is made of, for the functions that do its work."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._clock import Clock, current

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.models._catalog import Catalog
    from mlkit.models._codec import Codec
    from mlkit.models._folder import Folder
    from mlkit.models._policy import Policy

__all__ = ["Backing", "event_of"]


class Backing(NamedTuple):
    """A folder, what is in it, who must have signed that, its formats, and who changes it when. Thread-safe."""

    folder: Folder
    catalog: Catalog
    policy: Policy
    codecs: Mapping[str, Codec]
    who: str | None
    clock: Clock | None

    def event(self, kind: str, number: int, why: str) -> dict[str, Any]:
        """Return what the history says of any change.

        Args:
            kind: Of the change.
            number: The version.
            why: Why.
        """
        return event_of(self.who, self.clock, kind, number, why)


def event_of(
    who: str | None, clock: Clock | None, kind: str, number: int, why: str
) -> dict[str, Any]:
    """Return what any history says of any change.

    Args:
        who: Who makes it; None for `user@host`.
        clock: Where the time comes from.
        kind: Of the change.
        number: The version.
        why: Why.
    """
    time = current(clock).time()
    return {
        "kind": kind,
        "version": number,
        "who": _user_and_host() if who is None else who,
        "time": time,
        "why": why,
    }


def _user_and_host() -> str:
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # containers often run as a number without a name
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"
