"""Whether this process was forked, for who cannot afford to ask the system each time."""

from __future__ import annotations

import os
from typing import final

__all__ = ["forks"]


@final
class _Forks:
    """Counts the forks between this process and the one that loaded mlkit."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0
        os.register_at_fork(after_in_child=self._count)

    def _count(self) -> None:
        self.n += 1


forks = _Forks()
