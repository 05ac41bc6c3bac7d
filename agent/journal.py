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
from dataclasses import dataclass, field, replace
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
    name TEXT PRIMARY KEY,
    claim BLOB NOT NULL,
    lost INTEGER NOT NULL DEFAULT 0,
    unsure INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS instances (
    number INTEGER PRIMARY KEY AUTOINCREMENT, instance TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS permits (
    name TEXT PRIMARY KEY, permit BLOB NOT NULL
) WITHOUT ROWID;
"""


_INSTANCES_KEPT = 1000  # of our own enrolments, by which an epoch of before is known


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
    claims that a store which was set back no longer has, and that are not settled yet; `unsure`
    are names that may have been given up; `instances` are the host's last enrolments, in order.
    """

    revision: int = 0
    claims: dict[Name, Claim] = field(default_factory=dict)
    lost: dict[Name, Claim] = field(default_factory=dict)
    permits: dict[Name, Permit] = field(default_factory=dict)
    unsure: set[Name] = field(default_factory=set)
    instances: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Changes:
    """What is to be written next. The newest word on a name is the one that counts."""

    claims: dict[Name, Claim | None] = field(default_factory=dict)
    lost: dict[Name, bool] = field(default_factory=dict)
    permits: dict[Name, Permit | None] = field(default_factory=dict)
    unsure: set[Name] = field(default_factory=set)
    instances: list[str] = field(default_factory=list)
    revision: int | None = None

    def __bool__(self) -> bool:
        """Whether there is anything whose loss would matter: a mark alone can wait."""
        return bool(self.claims or self.lost or self.permits or self.unsure or self.instances)

    def under(self, newer: _Changes) -> _Changes:
        """These, with newer ones over them: what could not be written is still to be."""
        return _Changes(
            self.claims | newer.claims,
            self.lost | newer.lost,
            self.permits | newer.permits,
            (self.unsure - newer.claims.keys()) | newer.unsure,
            self.instances + newer.instances,
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
            if _check(file) != _SCHEMA:  # a sound one is opened without a write: a disk may be full
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
            claims = self._file.execute("SELECT name, claim, lost, unsure FROM claims").fetchall()
            instances = self._file.execute("SELECT instance FROM instances ORDER BY number")
            permits = self._file.execute("SELECT name, permit FROM permits").fetchall()
            known: dict[Name, Claim] = {}
            lost: dict[Name, Claim] = {}
            unsure = {Name(name) for name, _, _, is_unsure in claims if is_unsure}
            for name, value, is_lost, _ in claims:
                (lost if is_lost else known)[Name(name)] = msgspec.json.decode(value, type=Claim)
            leave = {Name(name): msgspec.json.decode(value, type=Permit) for name, value in permits}
            return Kept(
                mark[0] if mark else 0,
                known,
                lost,
                leave,
                unsure,
                [instance for (instance,) in instances],
            )
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
        file.executemany(
            "UPDATE claims SET unsure = 1 WHERE name = ?", [(name,) for name in changes.unsure]
        )
        file.executemany(
            "INSERT INTO instances (instance) VALUES (?)", [(one,) for one in changes.instances]
        )
        if changes.instances:
            file.execute(
                "DELETE FROM instances WHERE number <= (SELECT max(number) FROM instances) - ?",
                (_INSTANCES_KEPT,),
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
        if isinstance(error, _Newer):
            hint = "upgrade, or move it away"
        return JournalFailed(f"journal {self._path}", str(error), hint)


def _check(file: sqlite3.Connection) -> int:
    """The schema of a file that is sound; 0 for a new one."""
    if file.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("quick_check found damage")
    (schema,) = file.execute("PRAGMA user_version").fetchone()
    if schema > _SCHEMA:
        raise _Newer(f"its schema {schema} is newer than {_SCHEMA}")
    return int(schema)


class _Newer(sqlite3.OperationalError):
    """A newer program has written it."""


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
        self._is_set_back = False
        self.reverted: set[Name] = set()
        """Names whose removal had failed before the store was set back to before that."""
        self._older: dict[Name, Claim] = {}

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that changes only with what is learnt."""
        while not holds():
            heard = asyncio.get_running_loop().create_future()
            self._awaiting.append(heard)
            await heard

    def stir(self) -> None:
        """What is waited for in `until` may hold now, for another reason."""
        self._heard()

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
        self._kept.unsure.discard(name)
        self.reverted.discard(name)
        if claim is None:
            if self._kept.claims.pop(name, None) is None:
                return
        else:
            self._supersede(name, claim)
            self._kept.lost.pop(name, None)
        self._changes.claims[name] = claim
        self._changes.lost.pop(name, None)
        self._changes.unsure.discard(name)
        self._begin()

    def _supersede(self, name: Name, claim: Claim) -> None:
        before = self._kept.claims.get(name)
        if before is not None and before.revision > claim.revision:
            self._older[name] = before  # by the number: whether it was set back, `listed` tells
        self._kept.claims[name] = claim
        if claim.revision > self._kept.revision:
            self._seen(claim.revision)

    def enrolled(self, instance: str, before: str | None) -> None:
        """An enrolment has replaced the epoch `before`.

        Where that is an instance of ours that a later one had replaced, or there is none any
        more, the store was set back: so it is found out although others have written more since
        than was lost.
        """
        earlier = self._kept.instances[:-1]
        if self._kept.instances and (before is None or before in earlier):
            self._is_set_back = True
        self._kept.instances.append(instance)
        self._changes.instances.append(instance)
        self._begin()

    def set_back(self) -> None:
        """The store was found to be another, or an older one, while it was used."""
        self._is_set_back = True

    def listed(self, revision: int, names: Iterable[Name]) -> None:
        """All claims of the host were listed at a revision; `learnt` has heard of each.

        What is not among them was freed by whoever may, unless the store is behind what was
        seen of it: then it was set back, and they are lost.
        """
        self._heard()
        seen = max([self._kept.revision, *(one.revision for one in self._older.values())])
        set_back = self._is_set_back or revision < seen
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
        older, self._older, self._is_set_back = self._older, {}, False
        if set_back:
            self.reverted |= {name for name, one in older.items() if self._has_failed(name, one)}
        self._seen(revision)
        self._begin()

    def _has_failed(self, name: Name, before: Claim) -> bool:
        now = self._kept.claims.get(name)
        removing = now is not None and now.state is ClaimState.REMOVING
        return removing and before.state is ClaimState.ACTIVE

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
        self._kept.unsure.add(name)
        self._changes.unsure.add(name)
        self._begin()

    def vouches(self, name: Name) -> Claim | None:
        """The claim of a name if nobody but this host, or an evict, can have freed it since.

        That is so while a device of it may exist. A claim that is `defined` can be moved.
        """
        claim = self._kept.claims.get(name)
        certain = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
        if claim is None or name in self._kept.unsure or claim.state not in certain:
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
        self._kept = replace(self._kept, revision=revision)
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
