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


class _Loss:
    """That a history is lost, once it is, and why."""

    def __init__(self) -> None:
        self.why = ""
        self.said = asyncio.Event()

    def say(self, why: str) -> None:
        self.why = self.why or why
        self.said.set()


class History:
    """The cluster and the highest revision that answers named; 0 is none yet."""

    def __init__(self) -> None:
        self.cluster = self.revision = 0
        self._loss = _Loss()

    def begin_anew(self) -> None:
        """Let the next answer be the first one; whoever waits for a loss is told of one."""
        before, self._loss = self._loss, _Loss()
        self.cluster = self.revision = 0
        before.say("all that was read is forgotten")

    @property
    def is_lost(self) -> bool:
        """Whether the answers so far were of different stores."""
        return bool(self._loss.why)

    def check(self) -> None:
        """See that the answers so far were of one store.

        Raises:
            SetBack: they were not.
        """
        if self.is_lost:
            raise SetBack(self._loss.why)

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
        loss = self._loss
        await loss.said.wait()
        raise SetBack(loss.why)

    def _lose(self, why: str) -> None:
        self._loss.say(why)
