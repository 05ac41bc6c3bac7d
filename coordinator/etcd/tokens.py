"""User and password, as the token that etcd gives for them.

A token lives five minutes after its last use, or a fixed time if etcd signs it (etcd:
--auth-token, --auth-token-ttl); how long is not said. So it is taken anew when it is refused,
which etcd does before anything is done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from etcd3 import etcdrpc

from coordinator.errors import Misconfigured, Unreachable
from coordinator.etcd.failures import AuthOff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.credentials import Credentials

__all__ = ["Tokens"]


class Tokens:
    """The token of a store's user; None where there is no user, or where etcd wants none."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.at_hand: str | None = None
        """The token that was taken last."""
        self._taken = False
        self._taking = asyncio.Lock()

    @property
    def used(self) -> bool:
        """Whether there is a user to take a token for."""
        return self._credentials.user is not None

    @property
    def are_taken(self) -> bool:
        """Whether `get` would return what is at hand."""
        return self._taken or not self.used

    async def get(self, authenticate: Callable[[Any], Awaitable[Any]]) -> str | None:
        """The token; one caller takes it for all who wait.

        Raises:
            NotAllowed: etcd does not take user or password.
            Unreachable: etcd could not be asked, or the password cannot be read any more.
        """
        if self.are_taken:
            return self.at_hand
        async with self._taking:
            if not self._taken:
                self.at_hand = await self._take(authenticate)
                self._taken = True
            return self.at_hand

    async def _take(self, authenticate: Callable[[Any], Awaitable[Any]]) -> str | None:
        try:
            password = self._credentials.password()
        except Misconfigured as error:  # it was good when the store was made
            raise Unreachable("etcd", error.message, "nothing was done") from None
        request = etcdrpc.AuthenticateRequest(name=self._credentials.user, password=password)
        try:
            return str((await authenticate(request)).token)
        except AuthOff:
            return None  # users were made, and asking for them is not switched on yet

    def drop(self, refused: str | None) -> None:
        """Take a new one before the next call, unless that was done since `refused`."""
        if refused in (None, self.at_hand):
            self._taken = False
