"""That all answers are of one store, which only ever moves on.

A store that was set back (restored from a snapshot, or another cluster at the same address) may
give a revision once more to something else, so that a compare on a revision that was read
before could hold of what was never read. So everything that was read must be forgotten; until
then nothing more is asked.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from coordinator.errors import SetBack

__all__ = ["History"]


class History:
    """The cluster and the highest revision that answers named; 0 is none yet."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Let the next answer be the first one."""
        self.cluster = self.revision = 0
        self._why = ""
        self._lost = asyncio.Event()

    def check(self) -> None:
        """See that the answers so far were of one store.

        Raises:
            SetBack: they were not.
        """
        if self._why:
            raise SetBack(self._why)

    def see(self, who: str, cluster: int, revision: int, floor: int = 0) -> bool:
        """Take note of an answer; whether it is of the store of those before it.

        `floor` is what `revision` was before the question was asked, 0 for a question that
        etcd answers from what one member has, which may be behind.
        """
        if self.cluster not in (0, cluster):
            self._lose(f"{who} is of cluster {cluster:x}, and it was {self.cluster:x} before")
        elif revision < floor:
            self._lose(f"{who} is at revision {revision}, and it was {floor} before")
        else:
            self.cluster = cluster
            self.revision = max(self.revision, revision)
            return True
        return False

    async def until_lost(self) -> NoReturn:
        """Wait until the store is found to be another or an older one.

        Raises:
            SetBack: it is.
        """
        lost = self._lost
        await lost.wait()
        raise SetBack(self._why)

    def _lose(self, why: str) -> None:
        self._why = self._why or why
        self._lost.set()
