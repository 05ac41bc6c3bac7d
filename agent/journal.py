"""What a host knows of its own claims, in a file that outlives the agent, the boot and the store.

It is written before the kernel is: whoever finds a device after a crash finds here whose it is.
It answers while the store is away, and what a lost store held of this host is in it.

The file is SQLite's (write-ahead log, every transaction flushed), one for each host and cluster.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from coordinator.errors import MdevnsError
from coordinator.model import Claim, Maker, Name, is_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Changes", "Journal", "JournalFailed", "Kept", "Permit", "journal_path"]

_log = structlog.get_logger()

# What each version of the file adds to the one before it.
_SCHEMAS = (
    """
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
""",
    "ALTER TABLE claims ADD COLUMN reverted INTEGER NOT NULL DEFAULT 0;",
)
_SCHEMA = len(_SCHEMAS)

_INSTANCES_KEPT = 1000  # of our own enrolments, by which an epoch of before is known


class JournalFailed(MdevnsError):
    """The journal could not be written; what was to follow was not done."""

    errno, exit_code = "EIO", 1


class Permit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leave to make a device, given to a process in one boot while the store was away.

    Or by a claim that a store which was set back has forgotten since.
    """

    maker: Maker
    boot_id: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What a journal holds.

    `revision` is the highest of the store that this host has seen, 0 for none; `lost` are
    claims that a store which was set back no longer has, and that are not settled yet; `unsure`
    are names that may have been given up; `instances` are the host's last enrolments, in order;
    `reverted` are names whose removal had failed before the store was set back to before that;
    `in_doubt` are names whose permit cannot be read.
    """

    revision: int = 0
    claims: dict[Name, Claim] = field(default_factory=dict)
    lost: dict[Name, Claim] = field(default_factory=dict)
    permits: dict[Name, Permit] = field(default_factory=dict)
    unsure: set[Name] = field(default_factory=set)
    instances: list[str] = field(default_factory=list)
    reverted: set[Name] = field(default_factory=set)
    in_doubt: set[Name] = field(default_factory=set)


@dataclass(slots=True)
class Changes:
    """What is to be written next. The newest word on a name is the one that counts."""

    claims: dict[Name, Claim | None] = field(default_factory=dict)
    lost: dict[Name, bool] = field(default_factory=dict)
    permits: dict[Name, Permit | None] = field(default_factory=dict)
    unsure: set[Name] = field(default_factory=set)
    instances: list[str] = field(default_factory=list)
    revision: int | None = None
    urgent: bool = False  # that the store was set back
    reverted: set[Name] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Whether there is anything whose loss would matter: how far the watch is can wait."""
        words = (self.claims, self.lost, self.permits, self.unsure, self.instances, self.reverted)
        return self.urgent or any(words)

    def under(self, newer: Changes) -> Changes:
        """These, with newer ones over them: what could not be written is still to be."""
        return Changes(
            self.claims | newer.claims,
            self.lost | newer.lost,
            self.permits | newer.permits,
            (self.unsure - newer.claims.keys()) | newer.unsure,
            self.instances + newer.instances,
            self.revision if newer.revision is None else newer.revision,
            self.urgent or newer.urgent,
            (self.reverted - newer.claims.keys()) | newer.reverted,
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
            schema = _check(file)
            if schema != _SCHEMA:  # a sound one is opened without a write: a disk may be full
                # At once, so that a crash leaves the one version or the other.
                steps = ("BEGIN IMMEDIATE;", *_SCHEMAS[schema:], f"PRAGMA user_version={_SCHEMA};")
                file.executescript("".join((*steps, "COMMIT;")))
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
        """All that it holds and that can be read.

        A row that cannot be read is told in the log, kept in a table of its own, and vouches for
        nothing: the store says of the claim what is so.

        Raises:
            JournalFailed: it cannot be read.
        """
        try:
            known, lost, unsure, reverted, damaged = self._read_claims()
            permits, in_doubt, more = self._read_permits()
            # Whatever its bytes are: what is not an instance of ours equals no epoch.
            instances = [
                value.decode(errors="replace")
                for (value,) in self._file.execute(
                    "SELECT CAST(instance AS BLOB) FROM instances ORDER BY number"
                )
            ]
            mark = self._file.execute(
                "SELECT revision FROM mark WHERE typeof(revision) = 'integer'"
            ).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._set_aside([*damaged, *more])
        # Where the mark cannot be read, what was seen of the claims is the least there was.
        seen = max((each.revision for each in (known | lost).values()), default=0)
        revision = mark[0] if mark else seen
        return Kept(revision, known, lost, permits, unsure, instances, reverted, in_doubt)

    def _read_claims(
        self,
    ) -> tuple[dict[Name, Claim], dict[Name, Claim], set[Name], set[Name], list[_Damaged]]:
        known: dict[Name, Claim] = {}
        lost: dict[Name, Claim] = {}
        unsure: set[Name] = set()
        reverted: set[Name] = set()
        damaged: list[_Damaged] = []
        rows = self._file.execute(
            "SELECT CAST(name AS BLOB), CAST(claim AS BLOB), lost, unsure, reverted FROM claims"
        ).fetchall()
        for key, value, is_lost, is_unsure, is_reverted in rows:
            try:
                name, claim = _name(key), msgspec.json.decode(value, type=Claim)
                if claim.name != name:
                    raise _NotOurs(f"it holds a claim of {claim.name}")
            except _UNREADABLE as error:
                damaged.append(_Damaged("claims", key, str(error)))
                continue
            (lost if is_lost else known)[name] = claim
            if is_unsure:
                unsure.add(name)
            if is_reverted:
                reverted.add(name)
        return known, lost, unsure, reverted, damaged

    def _read_permits(self) -> tuple[dict[Name, Permit], set[Name], list[_Damaged]]:
        permits: dict[Name, Permit] = {}
        in_doubt: set[Name] = set()
        damaged: list[_Damaged] = []
        rows = self._file.execute(
            "SELECT CAST(name AS BLOB), CAST(permit AS BLOB) FROM permits"
        ).fetchall()
        for key, value in rows:
            try:
                name = _name(key)
            except _UNREADABLE as error:
                damaged.append(_Damaged("permits", key, str(error)))
                continue
            try:
                permits[name] = msgspec.json.decode(value, type=Permit)
            except _UNREADABLE as error:
                in_doubt.add(name)  # its row stays until something is written in its place
                self._tell_of_row("permits", key, str(error))
        return permits, in_doubt, damaged

    def _set_aside(self, rows: list[_Damaged]) -> None:
        """Keep rows that cannot be read where nothing reads them, and nothing is kept down.

        A program of before knows nothing of that table, and needs to know nothing.
        """
        if not rows:
            return
        for row in rows:
            self._tell_of_row(row.table, row.key, row.why)
        try:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS damaged (was TEXT, name BLOB, value BLOB, why TEXT)"
            )
            for row in rows:
                column = "claim" if row.table == "claims" else "permit"
                self._file.execute(
                    f"INSERT INTO damaged SELECT ?, CAST(name AS BLOB), CAST({column} AS BLOB), ?"  # noqa: S608 - two words of ours
                    f" FROM {row.table} WHERE CAST(name AS BLOB) = ?",
                    (row.table, row.why, row.key),
                )
                self._file.execute(
                    f"DELETE FROM {row.table} WHERE CAST(name AS BLOB) = ?",  # noqa: S608 - as above
                    (row.key,),
                )
            self._file.execute("COMMIT")
        except sqlite3.Error as error:  # a full disk: it is passed over now, and moved by the next
            with suppress(sqlite3.Error):
                self._file.execute("ROLLBACK")
            _log.warning("journal row stays", path=str(self._path), why=str(error))

    def _tell_of_row(self, table: str, key: bytes, why: str) -> None:
        name = key.decode(errors="backslashreplace")
        _log.error("journal row is damaged", path=str(self._path), table=table, name=name, why=why)

    def write(self, changes: Changes) -> None:
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

    def _write(self, changes: Changes) -> None:
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
            "UPDATE claims SET reverted = 1 WHERE name = ?", [(name,) for name in changes.reverted]
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
        self._file.close()

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


class _NotOurs(ValueError):
    """A row's words are well-formed, and not what this host's journal writes."""


# What foreign bytes do to whoever reads them: no JSON, not its shape, no UTF-8, nested too deeply.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Damaged(NamedTuple):
    """A row that cannot be read: the table that it is in, its key's bytes, and what is wrong."""

    table: str
    key: bytes
    why: str


def _name(key: bytes) -> Name:
    text = key.decode()
    if not is_name(text):
        raise _NotOurs("its key is no name")
    return Name(text)


class _Newer(sqlite3.OperationalError):
    """A newer program has written it."""
