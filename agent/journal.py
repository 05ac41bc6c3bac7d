"""What a host knows of its own claims, in a file that outlives the agent, the boot and the store.

It is written before the kernel is: whoever finds a device after a crash finds here whose it is.
It answers while the store is away, and what a lost store held of this host is in it.

The file is SQLite's (write-ahead log, every transaction flushed), one for each host and cluster.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog

from agent.threads import in_thread
from coordinator.errors import MdevnsError
from coordinator.model import Claim, Maker, Name
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["Journal", "JournalFailed", "Notes", "Permit", "journal_path"]

_log = structlog.get_logger()

_SCHEMA = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS mark (
    one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS claims (
    name TEXT PRIMARY KEY, claim BLOB NOT NULL, lost INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS permits (
    name TEXT PRIMARY KEY, permit BLOB NOT NULL
) WITHOUT ROWID;
"""


class JournalFailed(MdevnsError):
    """The journal could not be written; what was to follow was not done."""

    errno, exit_code = "EIO", 1


class Permit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leave to make a device, given while the store was away, to a process in one boot."""

    maker: Maker
    boot_id: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What a journal holds.

    `revision` is the highest of the store that this host has seen, 0 for none; `lost` are
    claims that a store which was set back no longer has, and that are not settled yet.
    """

    revision: int = 0
    claims: dict[Name, Claim] = field(default_factory=dict)
    lost: dict[Name, Claim] = field(default_factory=dict)
    permits: dict[Name, Permit] = field(default_factory=dict)


@dataclass(slots=True)
class _Changes:
    """What is to be written next. The newest word on a name is the one that counts."""

    claims: dict[Name, Claim | None] = field(default_factory=dict)
    lost: dict[Name, bool] = field(default_factory=dict)
    permits: dict[Name, Permit | None] = field(default_factory=dict)
    revision: int | None = None

    def __bool__(self) -> bool:
        """Whether there is anything whose loss would matter: a mark alone can wait."""
        return bool(self.claims or self.lost or self.permits)

    def under(self, newer: _Changes) -> _Changes:
        """These, with newer ones over them: what could not be written is still to be."""
        return _Changes(
            self.claims | newer.claims,
            self.lost | newer.lost,
            self.permits | newer.permits,
            self.revision if newer.revision is None else newer.revision,
        )


def journal_path(directory: Path, cluster: str, host: str) -> Path:
    """Where the journal of a host in a cluster is."""
    return directory / f"{cluster}@{host}.journal"


class Journal:
    """The file. Its methods block for moments; one caller at a time.

    A file that SQLite cannot read is put aside as `….damaged`, told in the log, and begun anew:
    what it said of the claims is in the store too, as long as that is there.

    Raises:
        JournalFailed: there can be none, for a full disk or for missing rights.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._file = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise  # a disk that is full, or not ours to write: the file may be sound
                self._put_aside(error)
                self._file = self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        file = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            # Flushed at each commit: the kernel is asked only for what is here for certain.
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("PRAGMA synchronous=FULL")
            _check(file)
            file.executescript(_TABLES)
            file.execute(f"PRAGMA user_version={_SCHEMA}")
        except BaseException:
            file.close()
            raise
        return file

    def _put_aside(self, error: sqlite3.Error) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        _log.error("journal is damaged", path=str(self._path), why=str(error), aside=str(aside))
        self._path.replace(aside)
        for rest in ("-wal", "-shm"):
            self._path.with_name(self._path.name + rest).unlink(missing_ok=True)

    def read(self) -> Kept:
        """All that it holds.

        Raises:
            JournalFailed: it cannot be read.
        """
        try:
            mark = self._file.execute("SELECT revision FROM mark").fetchone()
            claims = self._file.execute("SELECT name, claim, lost FROM claims").fetchall()
            permits = self._file.execute("SELECT name, permit FROM permits").fetchall()
            known: dict[Name, Claim] = {}
            lost: dict[Name, Claim] = {}
            for name, value, is_lost in claims:
                (lost if is_lost else known)[Name(name)] = msgspec.json.decode(value, type=Claim)
            leave = {Name(name): msgspec.json.decode(value, type=Permit) for name, value in permits}
            return Kept(mark[0] if mark else 0, known, lost, leave)
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self._failed(error) from error

    def write(self, changes: _Changes) -> None:
        """Take changes down, all or none; returns when they are on the disk.

        Raises:
            JournalFailed: they are not.
        """
        try:
            self._file.execute("BEGIN IMMEDIATE")
            self._write(changes)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._file.execute("ROLLBACK")
            raise self._failed(error) from error

    def _write(self, changes: _Changes) -> None:
        file = self._file
        gone = [(name,) for name, claim in changes.claims.items() if claim is None]
        file.executemany("DELETE FROM claims WHERE name = ?", gone)
        file.executemany(
            "INSERT OR REPLACE INTO claims (name, claim, lost) VALUES (?, ?, 0)",
            [(n, msgspec.json.encode(c)) for n, c in changes.claims.items() if c is not None],
        )
        file.executemany(
            "UPDATE claims SET lost = ? WHERE name = ?",
            [(int(lost), name) for name, lost in changes.lost.items()],
        )
        ended = [(name,) for name, permit in changes.permits.items() if permit is None]
        file.executemany("DELETE FROM permits WHERE name = ?", ended)
        file.executemany(
            "INSERT OR REPLACE INTO permits (name, permit) VALUES (?, ?)",
            [(n, msgspec.json.encode(p)) for n, p in changes.permits.items() if p is not None],
        )
        if changes.revision is not None:
            file.execute("INSERT OR REPLACE INTO mark VALUES (1, ?)", (changes.revision,))

    def close(self) -> None:
        """Let go of the file."""
        with closing(self._file):
            pass

    def _failed(self, error: Exception) -> JournalFailed:
        hint = "see that its disk has room and is the agent's to write"
        return JournalFailed(f"journal {self._path}", str(error), hint)


def _check(file: sqlite3.Connection) -> None:
    if file.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("quick_check found damage")
    (schema,) = file.execute("PRAGMA user_version").fetchone()
    if schema > _SCHEMA:
        raise sqlite3.OperationalError(f"its schema {schema} is newer than {_SCHEMA}")


class Notes:
    """The journal as the agent keeps it: known in memory, written off the event loop.

    What is learnt is taken down soon; `written` waits for it. What is learnt while a
    transaction is on its way to the disk goes there with the next one.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._kept = journal.read()
        self._changes = _Changes()
        self._writing: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self._awaiting: list[asyncio.Future[None]] = []
        self._unsure: set[Name] = set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that changes only with what is learnt."""
        while not holds():
            heard = asyncio.get_running_loop().create_future()
            self._awaiting.append(heard)
            await heard

    def _heard(self) -> None:
        for heard in self._awaiting:
            if not heard.done():
                heard.set_result(None)
        self._awaiting.clear()

    @property
    def claims(self) -> dict[Name, Claim]:
        """The host's claims, as far as it has heard."""
        return self._kept.claims

    @property
    def lost(self) -> dict[Name, Claim]:
        """Claims that the store no longer has although nobody has freed them."""
        return self._kept.lost

    @property
    def permits(self) -> dict[Name, Permit]:
        """Leave that was given while the store was away."""
        return self._kept.permits

    # What the informer tells.

    def learnt(self, name: Name, claim: Claim | None) -> None:
        """The newest that the store says of a name; None: the host has no claim of it."""
        self._heard()
        self._unsure.discard(name)
        if claim is None:
            if self._kept.claims.pop(name, None) is None:
                return
        else:
            self._kept.claims[name] = claim
            self._kept.lost.pop(name, None)
        self._changes.claims[name] = claim
        self._changes.lost.pop(name, None)
        self._begin()

    def listed(self, revision: int, names: Iterable[Name]) -> None:
        """All claims of the host were listed at a revision; `learnt` has heard of each.

        What is not among them was freed by whoever may, unless the store is behind what was
        seen of it: then it was set back, and they are lost.
        """
        self._heard()
        set_back = revision < self._kept.revision
        missing = self._kept.claims.keys() - set(names)
        if set_back:
            _log.error(
                "the store was set back",
                revision=revision,
                seen=self._kept.revision,
                claims_lost=len(missing),
            )
        for name in missing:
            claim = self._kept.claims.pop(name)
            if set_back:
                self._kept.lost[name] = claim
                self._changes.lost[name] = True
            else:
                self._changes.claims[name] = None
        self._seen(revision)
        self._begin()

    def told(self, revision: int) -> None:
        """The watch has told all up to a revision."""
        if revision > self._kept.revision:
            self._seen(revision)  # written along with the next claim, or at the end

    # What the agent does.

    def unsure(self, name: Name) -> None:
        """A transaction that gives the name up is about to be sent.

        It may be applied although nobody is told, even after we are gone, so the journal no
        longer vouches for the claim, until the store's next word on it.
        """
        self._unsure.add(name)
        self._changes.claims[name] = None
        self._begin()

    def vouches(self, name: Name) -> Claim | None:
        """The claim of a name if nobody but this host, or an evict, can have freed it since.

        That is so while a device of it may exist. A claim that is `defined` can be moved.
        """
        claim = self._kept.claims.get(name)
        certain = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
        if claim is None or name in self._unsure or claim.state not in certain:
            return None
        return claim

    def settled(self, name: Name) -> None:
        """A lost claim is one no more: the name is another's, or there is nothing to put back."""
        if self._kept.lost.pop(name, None) is not None:
            self._changes.lost.pop(name, None)
            self._changes.claims[name] = None
            self._begin()

    def permit(self, name: Name, permit: Permit | None) -> None:
        """Give leave for a device, or take it back."""
        if permit is not None:
            self._kept.permits[name] = permit
        elif self._kept.permits.pop(name, None) is None:
            return
        self._changes.permits[name] = permit
        self._begin()

    async def written(self) -> None:
        """Wait until all that was learnt so far is on the disk.

        Raises:
            JournalFailed: it is not, and whoever waits must not go on.
        """
        while self._changes or self._writing:
            self._begin()
            assert self._writing is not None
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Take down what is left, and let go of the file."""
        with suppress(JournalFailed):  # told when it began
            await self.written()
            await in_thread(self._journal.write, self._changes)
        self._journal.close()

    def _seen(self, revision: int) -> None:
        self._kept = Kept(revision, self._kept.claims, self._kept.lost, self._kept.permits)
        self._changes.revision = revision

    def _begin(self) -> None:
        if self._writing is None and self._changes:
            self._writing = asyncio.get_running_loop().create_task(self._write())
            self._writing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _write(self) -> None:
        try:
            # A breath, so that all that is learnt at the same moment goes in one transaction.
            await asyncio.sleep(0)
            while self._changes:
                changes, self._changes = self._changes, _Changes()
                try:
                    await in_thread(self._journal.write, changes)
                except BaseException:
                    self._changes = changes.under(self._changes)
                    raise
            self._note(None)
        except JournalFailed as error:
            self._note(error.line)
            raise
        finally:
            self._writing = None

    def _note(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            said = "journal cannot be written" if trouble else "journal is well again"
            _log.warning(said, why=trouble)
