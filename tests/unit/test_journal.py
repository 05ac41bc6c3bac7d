"""The journal: what it keeps, what it vouches for, and what it makes of a store that was lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from agent.journal import Journal, JournalFailed, Kept, Permit, journal_path
from agent.makers import Makers, living
from agent.notes import Notes
from coordinator.model import Claim, Maker
from coordinator.states import ClaimState
from tests.support.desk import HOST, NAME, PARENT, TYPE, name
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.model import Name

MAKER = Maker(pid=1, started=2)


def claim(which: Name = NAME, state: ClaimState = ClaimState.ACTIVE, *, revision: int = 5) -> Claim:
    """A claim as the store has it."""
    return Claim(
        name=which,
        host=HOST,
        revision=revision,
        state=state,
        parent=PARENT,
        type=TYPE,
        attrs=(("a", "1"),),
        persistent=True,
        request="r",
        boot_id="b1",
        since="t",
        created="t",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_path(tmp_path / "state", "test", HOST)


async def kept(path: Path, *claims: Claim, revision: int = 5) -> None:
    """A journal that an agent has left, which had listed these claims at a revision."""
    notes = Notes(Journal(path))
    for one in claims:
        notes.learnt(one.name, one)
    notes.listed(revision, [one.name for one in claims])
    await notes.close()


async def test_what_was_learnt_is_there_after_a_restart(path: Path) -> None:
    """Claims as they were last heard of, without those that were freed."""
    await kept(path, claim(), claim(name(2)))
    notes = Notes(Journal(path))
    newer = claim(state=ClaimState.REMOVING, revision=7)
    notes.learnt(NAME, newer)
    notes.learnt(name(2), None)
    await notes.close()
    assert Notes(Journal(path)).claims == {NAME: newer}


async def test_what_was_written_survives_a_kill(path: Path) -> None:
    """Once `written` returns, SIGKILL loses nothing of it."""
    script = """
import asyncio, sys
from pathlib import Path
from agent.journal import Journal
from agent.notes import Notes
from tests.unit.test_journal import claim
async def main():
    notes = Notes(Journal(Path(sys.argv[1])))
    notes.learnt(claim().name, claim())
    await notes.written()
    print("written", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen(  # noqa: ASYNC220 - read at once and killed
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert Journal(path).read().claims == {NAME: claim()}


async def test_many_things_learnt_at_once_are_few_transactions(path: Path) -> None:
    """A host's 128 devices cost a flush or two, not 128."""
    journal = Counting(path)
    notes = Notes(journal)
    for number in range(128):
        notes.learnt(name(number), claim(name(number)))
    await notes.written()
    assert journal.writes <= 2
    assert len(Notes(Journal(path)).claims) == 128
    await notes.close()


class Counting(Journal):
    """A journal that counts its transactions, or fails while `full`."""

    writes = 0
    full = False

    def write(self, changes: object) -> None:
        """Count, and write unless full."""
        self.writes += 1
        if self.full:
            raise JournalFailed(str(self), "database or disk is full")
        super().write(changes)  # type: ignore[arg-type]  # handed on


async def test_who_waits_for_a_write_that_fails_is_told_and_nothing_is_lost(path: Path) -> None:
    """What could not be written is with the next that can."""
    journal = Counting(path)
    notes = Notes(journal)
    journal.full = True
    notes.learnt(NAME, claim())
    with pytest.raises(JournalFailed):
        await notes.written()
    journal.full = False
    notes.learnt(name(2), claim(name(2)))
    await notes.written()
    assert Notes(Journal(path)).claims.keys() == {NAME, name(2)}
    await notes.close()


def test_what_others_may_read_is_nothing(path: Path) -> None:
    """The file is its owner's alone."""
    Journal(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_damaged_file_is_put_aside_and_told(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An agent starts with an empty journal, and the old one is kept for whoever asks."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"SQLite format 3\0" + os.urandom(4096))
    assert Journal(path).read().claims == {}
    assert path.with_name(f"{path.name}.damaged").exists()
    assert "journal is damaged" in capsys.readouterr().out


DAMAGE = {
    "no JSON": "UPDATE claims SET claim = x'7b' WHERE name = :name",
    "not a claim": "UPDATE claims SET claim = x'7b7d' WHERE name = :name",
    "nested too deeply": "UPDATE claims SET claim = :deep WHERE name = :name",
    "no UTF-8": "UPDATE claims SET claim = CAST(x'22ff22' AS TEXT) WHERE name = :name",
    "a number": "UPDATE claims SET claim = 7 WHERE name = :name",
    "a claim of another name": "UPDATE claims SET claim = :other WHERE name = :name",
    "no name": "UPDATE claims SET name = 'gpu' WHERE name = :name",
    "a name that is no UTF-8": "UPDATE claims SET name = CAST(x'ff' AS TEXT) WHERE name = :name",
}


def damage(path: Path, statement: str) -> None:
    """Do to the file what a disk does."""
    values = {
        "name": NAME,
        "deep": b"[" * 100_000,
        "other": msgspec.json.encode(claim(name(2))),
    }
    with sqlite3.connect(path) as file:
        file.execute(statement, {k: v for k, v in values.items() if f":{k}" in statement})
    file.close()


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_row_vouches_for_nothing_and_stops_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    """The others are read, it is kept and told once, and the store's word takes its place."""
    await kept(path, claim(), claim(name(2)), revision=9)
    damage(path, statement)
    notes = Notes(Journal(path))
    assert notes.claims == {name(2): claim(name(2))}
    assert notes.vouches(NAME) is None
    assert "journal row is damaged" in capsys.readouterr().out
    notes.learnt(NAME, claim())
    await notes.close()
    assert Journal(path).read() == Kept(9, {NAME: claim(), name(2): claim(name(2))})
    assert "damaged" not in capsys.readouterr().out
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT count(*) FROM damaged").fetchone() == (1,)
    file.close()


@pytest.mark.parametrize(
    "statement",
    ["UPDATE mark SET revision = 'x'", "UPDATE mark SET revision = CAST(x'ff' AS TEXT)"],
)
async def test_a_damaged_mark_is_as_far_as_the_claims_are(path: Path, statement: str) -> None:
    """Of a store that was set back to before them it is known that it was."""
    await kept(path, claim(revision=8), revision=9)
    damage(path, statement)
    assert Journal(path).read().revision == 8


async def test_a_damaged_instance_equals_no_epoch(path: Path) -> None:
    """The enrolments before and after it are known."""
    notes = Notes(Journal(path))
    for one in ("i1", "i2", "i3"):
        notes.enrolled(one)
    await notes.close()
    damage(path, "UPDATE instances SET instance = CAST(x'ff' AS TEXT) WHERE instance = 'i2'")
    first, second, third = Journal(path).read().instances
    assert (first, third) == ("i1", "i3")
    assert second != "i2"


def test_a_journal_of_a_newer_program_is_left_alone(path: Path) -> None:
    """It is refused, and stays as it is."""
    Journal(path).close()
    with sqlite3.connect(path) as file:
        file.execute("PRAGMA user_version=99")
    file.close()
    with pytest.raises(JournalFailed, match="schema 99 is newer"):
        Journal(path)
    assert not path.with_name(f"{path.name}.damaged").exists()


async def test_a_file_of_an_earlier_program_is_taken_over(path: Path) -> None:
    """What it says is there still, and what it could not say can be said."""
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as file:
        file.executescript(FIRST_SCHEMA)
        value = msgspec.json.encode(claim(revision=50))
        file.execute("INSERT INTO claims (name, claim, unsure) VALUES (?, ?, 1)", (NAME, value))
        file.execute("INSERT INTO mark VALUES (1, 50)")
        file.execute("INSERT INTO instances (instance) VALUES ('i1')")
    file.close()
    journal = Journal(path)
    one = claim(revision=50)
    assert journal.read() == Kept(50, {NAME: one}, unsure={NAME}, instances=["i1"])
    notes = Notes(journal)
    notes.learnt(NAME, claim(state=ClaimState.REMOVING, revision=3))
    notes.listed(4, [NAME])
    await notes.close()
    assert Journal(path).read().reverted == {NAME}


FIRST_SCHEMA = """
CREATE TABLE mark (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL);
CREATE TABLE claims (
    name TEXT PRIMARY KEY,
    claim BLOB NOT NULL,
    lost INTEGER NOT NULL DEFAULT 0,
    unsure INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE instances (number INTEGER PRIMARY KEY AUTOINCREMENT, instance TEXT NOT NULL);
CREATE TABLE permits (name TEXT PRIMARY KEY, permit BLOB NOT NULL) WITHOUT ROWID;
PRAGMA user_version=1;
"""


def test_a_place_where_none_can_be_is_an_error_with_its_path(tmp_path: Path) -> None:
    """A directory that is a file, say."""
    (tmp_path / "state").touch()
    with pytest.raises(JournalFailed, match="state"):
        Journal(journal_path(tmp_path / "state", "test", HOST))


# A list.


async def test_what_is_not_listed_any_more_is_forgotten(path: Path) -> None:
    """Whoever may has freed it: an evict, say, while the agent was away."""
    await kept(path, claim())
    notes = Notes(Journal(path))
    notes.listed(9, [])
    assert (notes.claims, notes.lost) == ({}, {})
    await notes.close()
    assert Notes(Journal(path)).claims == {}


async def test_what_a_store_that_was_set_back_does_not_list_is_lost(path: Path) -> None:
    """Its revision is behind what this host has seen, and that is remembered over a crash."""
    await kept(path, claim(), claim(name(2)), revision=50)
    notes = Notes(Journal(path))
    notes.learnt(name(2), claim(name(2), revision=3))
    notes.listed(4, [name(2)])
    assert (set(notes.claims), set(notes.lost)) == ({name(2)}, {NAME})
    await notes.close()
    again = Notes(Journal(path))
    assert again.lost == {NAME: claim()}
    again.listed(5, [name(2)])
    assert again.lost.keys() == {NAME}
    again.settled(NAME)
    await again.close()
    assert Notes(Journal(path)).lost == {}


async def test_what_the_watch_told_counts_as_seen(path: Path) -> None:
    """A store behind that was set back, although the last list was older."""
    notes = Notes(Journal(path))
    notes.learnt(NAME, claim())
    notes.listed(5, [NAME])
    notes.told(50)
    await notes.close()
    again = Notes(Journal(path))
    again.listed(20, [])
    assert again.lost.keys() == {NAME}
    await again.close()


# What it vouches for.


async def test_it_vouches_for_what_only_this_host_can_free(path: Path) -> None:
    """A claim behind which a device may stand; a definition can be moved."""
    notes = Notes(Journal(path))
    for state in ClaimState:
        notes.learnt(NAME, claim(state=state))
        durable = state in (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
        assert (notes.vouches(NAME) is not None) == durable
    await notes.close()


async def test_it_does_not_vouch_for_what_is_being_given_up(path: Path) -> None:
    """Not after a crash either: the transaction may be applied all the same."""
    await kept(path, claim())
    notes = Notes(Journal(path))
    notes.unsure(NAME)
    await notes.written()
    assert notes.vouches(NAME) is None
    assert Notes(Journal(path)).vouches(NAME) is None
    notes.learnt(NAME, claim(revision=8))
    assert notes.vouches(NAME) is not None
    await notes.close()


async def test_whoever_waits_hears_of_every_change(path: Path) -> None:
    """A condition on the claims is looked at again with each."""
    notes = Notes(Journal(path))
    looked: list[int] = []

    def holds() -> bool:
        looked.append(len(notes.claims))
        return name(2) in notes.claims

    waiting = asyncio.create_task(notes.until(holds))
    await wait_until_async(lambda: looked == [0], 10)
    notes.learnt(NAME, claim())
    await wait_until_async(lambda: looked == [0, 1], 10)
    assert not waiting.done()
    notes.learnt(name(2), claim(name(2)))
    await waiting
    await notes.close()


# Makers.


async def test_a_permit_is_of_one_boot_and_one_process(path: Path) -> None:
    """It is there after a restart, and void once its process has ended or the boot has."""
    with subprocess.Popen(["sleep", "600"]) as process:  # noqa: ASYNC220 - it only has to be there
        maker = living(process.pid)
        assert maker is not None
        notes = Notes(Journal(path))
        Makers(notes, lambda: "b1").permit(NAME, maker)
        await notes.close()
        again = Notes(Journal(path))
        assert again.permits == {NAME: Permit(maker=maker, boot_id="b1")}
        assert Makers(again, lambda: "b1").may_write(NAME, claim())
        assert not Makers(again, lambda: "b2").may_write(NAME, claim())
        assert again.permits == {}
        Makers(again, lambda: "b1").permit(NAME, maker)
        process.kill()
    assert not Makers(again, lambda: "b1").may_write(NAME, claim())
    await again.close()


async def test_a_permit_that_cannot_be_read_holds_until_the_boot_ends(path: Path) -> None:
    """Its process may write to the kernel still, and nobody can say which it is."""
    notes = Notes(Journal(path))
    Makers(notes, lambda: "b1").permit(NAME, MAKER)
    await notes.close()
    damage(path, "UPDATE permits SET permit = x'7b' WHERE name = :name")
    for _ in range(2):  # the agent that finds it, and the next
        notes = Notes(Journal(path))
        assert Makers(notes, lambda: "b1").may_write(NAME, claim())
        await notes.close()
    notes = Notes(Journal(path))
    assert not Makers(notes, lambda: "b2").may_write(NAME, claim())
    await notes.close()


def test_a_process_is_known_by_its_start(tmp_path: Path) -> None:
    """A pid that is used again is another process; one that is dead is none."""
    with subprocess.Popen(["sleep", "600"]) as process:
        maker = living(process.pid)
        assert maker == living(process.pid)
        assert maker != living(os.getpid())
        process.kill()
        assert wait_until(lambda: living(process.pid) is None, 10)
    assert living(process.pid) is None
    stat_file = tmp_path / "7" / "stat"
    stat_file.parent.mkdir()
    fields = " ".join(["1"] * 18)
    stat_file.write_text(f"7 (a) ) b) D {fields} 4711 0")
    assert living(7, tmp_path) == Maker(7, 4711)


async def test_a_set_back_that_was_found_is_known_after_a_crash(path: Path) -> None:
    """The enrolment overwrites the epoch that told it, and others write on until the next list."""
    await kept(path, claim(), revision=50)
    notes = Notes(Journal(path))
    for instance in ("i1", "i2"):
        notes.enrolled(instance)
    notes.found("i2")
    notes.listed(51, [NAME])
    notes.found("i1")
    await notes.written()  # and is killed, before or after its enrolment
    again = Notes(Journal(path))
    again.found("i3")
    again.enrolled("i4")
    again.listed(99, [])
    assert again.lost.keys() == {NAME}
    again.learnt(name(2), claim(name(2), revision=100))
    again.listed(101, [])
    assert (set(again.claims), set(again.lost)) == (set(), {NAME})
    await again.close()


async def test_a_removal_that_had_failed_is_over_after_a_crash(path: Path) -> None:
    """The store was set back to before it failed; until its next word the journal knows better."""
    await kept(path, claim(revision=50), revision=50)
    old = claim(state=ClaimState.REMOVING, revision=3)
    notes = Notes(Journal(path))
    notes.learnt(NAME, old)
    notes.listed(4, [NAME])
    await notes.written()  # and is killed before the store is told
    again = Notes(Journal(path))
    assert again.reverted == {NAME}
    again.learnt(NAME, old)
    again.listed(4, [NAME])
    assert again.reverted == {NAME}
    await again.close()
    assert Notes(Journal(path)).reverted == {NAME}


@pytest.mark.parametrize("word", [claim(revision=8), None])
async def test_the_next_word_on_a_removal_that_had_failed_is_the_newest(
    path: Path, word: Claim | None
) -> None:
    """A removal that is asked for after it is done."""
    await kept(path, claim(revision=50), revision=50)
    notes = Notes(Journal(path))
    notes.learnt(NAME, claim(state=ClaimState.REMOVING, revision=3))
    notes.listed(4, [NAME])
    notes.learnt(NAME, word)
    notes.learnt(NAME, claim(state=ClaimState.REMOVING, revision=9))
    assert notes.reverted == set()
    await notes.close()
    assert Notes(Journal(path)).reverted == set()


async def test_a_reservation_is_not_lost_with_its_store(path: Path) -> None:
    """No device was begun for it, so there is nothing to put back."""
    await kept(path, claim(state=ClaimState.RESERVED), revision=50)
    notes = Notes(Journal(path))
    notes.listed(4, [])
    assert (notes.claims, notes.lost) == ({}, {})
    await notes.close()


async def test_another_process_of_the_same_pid_is_no_maker(path: Path, tmp_path: Path) -> None:
    """A pid that the kernel gave to somebody else is not waited for; the maker has ended."""
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    rest = " ".join(["0"] * 18)
    (proc / "7/stat").write_text(f"7 (mdevctl) S {rest} 41\n")
    makers = Makers(Notes(Journal(path)), lambda: "b1", proc)
    mine = msgspec.structs.replace(
        claim(NAME, state=ClaimState.CREATING), maker=Maker(7, 41), boot_id="b1"
    )
    assert makers.may_write(NAME, mine)
    (proc / "7/stat").write_text(f"7 (mdevctl) S {rest} 42\n")
    assert not makers.may_write(NAME, mine)


OTHERS = msgspec.structs.replace(claim(state=ClaimState.RESERVED, revision=60), request="o")


async def displaced(path: Path, reserved: Claim) -> Notes:
    """Of a host whose store was set back, and now has a reservation of its device's name."""
    await kept(path, claim(revision=50), revision=50)
    notes = Notes(Journal(path))
    notes.set_back("it is older")
    notes.learnt(NAME, reserved)
    notes.listed(61, [NAME])
    return notes


@pytest.mark.parametrize("reserved", [OTHERS, claim(state=ClaimState.RESERVED, revision=3)])
async def test_a_reservation_over_what_a_store_has_lost_does_not_hide_it(
    path: Path, reserved: Claim
) -> None:
    """It came in after the store was set back, or is what it was set back to, and lapses."""
    notes = await displaced(path, reserved)
    assert (notes.claims, notes.lost) == ({NAME: reserved}, {NAME: claim(revision=50)})
    await notes.written()  # and is killed
    again = Notes(Journal(path))
    again.learnt(NAME, reserved)
    again.listed(61, [NAME])
    again.learnt(NAME, None)
    assert (again.claims, again.lost) == ({}, {NAME: claim(revision=50)})
    await again.close()
    last = Notes(Journal(path))
    assert last.lost == {NAME: claim(revision=50)}
    last.learnt(NAME, reserved)
    last.learnt(NAME, msgspec.structs.replace(reserved, state=ClaimState.CREATING))
    assert last.lost == {}
    await last.close()
    assert Notes(Journal(path)).lost == {}


async def test_a_reservation_over_a_lost_claim_that_is_not_listed_any_more_does_not_hide_it(
    path: Path,
) -> None:
    """It lapsed while the next agent enrolled."""
    notes = await displaced(path, OTHERS)
    notes.listed(62, [])
    assert (notes.claims, notes.lost) == ({}, {NAME: claim(revision=50)})
    await notes.close()
    assert Notes(Journal(path)).lost == {NAME: claim(revision=50)}


async def test_a_reservation_of_a_name_that_was_freed_leaves_nothing_of_before(path: Path) -> None:
    """Both happened while the agent was away, and the store was not set back."""
    await kept(path, claim(revision=50), revision=50)
    notes = Notes(Journal(path))
    notes.learnt(NAME, OTHERS)
    notes.listed(61, [NAME])
    assert (notes.claims, notes.lost) == ({NAME: OTHERS}, {})
    assert notes.vouches(NAME) is None
    await notes.close()
    again = Notes(Journal(path))
    assert (again.claims, again.lost) == ({}, {})


async def test_what_is_begun_after_a_reservation_is_not_dropped_by_the_next_list(
    path: Path,
) -> None:
    """The word that the name had been free in between was never told."""
    await kept(path, claim(revision=50), revision=50)
    begun = msgspec.structs.replace(OTHERS, state=ClaimState.CREATING, revision=61)
    notes = Notes(Journal(path))
    notes.learnt(NAME, OTHERS)
    notes.learnt(NAME, begun)
    notes.listed(62, [NAME])
    await notes.close()
    assert Notes(Journal(path)).claims == {NAME: begun}
