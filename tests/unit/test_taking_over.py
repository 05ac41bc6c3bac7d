"""Definitions of mdevctl taken over as persistent names, with hosts that answer as told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cli.definitions import Definition, Definitions, Unusable
from coordinator.claims import Hold
from coordinator.defining import take_over
from coordinator.errors import InvalidValue, NameTaken, NotFound, TryAgain
from coordinator.model import Claim, Removal, Wish
from coordinator.reserving import reserve
from coordinator.states import ClaimState
from coordinator.transactions import transaction
from tests.support.desk import HOST, NAME, OTHER, TYPE
from tests.support.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from coordinator.client import Client, Result

WISH = Wish(host=HOST, parent="p0", type=TYPE, attrs=(("a", "1"),), persistent=True, autostart=True)


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.host(HOST, p0=9, p1=9)
    scene.host(OTHER, p0=9)
    return scene


def asked(scene: Scene, work: Callable[[Client], Coroutine[Any, Any, Result]]) -> Result:
    """Ask for one thing."""

    async def listed(client: Client) -> list[Result]:
        return [await work(client)]

    (result,) = scene.run(listed)
    return result


def taken_over(scene: Scene, wish: Wish = WISH) -> Result:
    """Take a definition over."""
    return asked(scene, lambda client: take_over(client, NAME, wish, request="r"))


def adopted(scene: Scene, parent: str = "p0", type_: str = TYPE, host: str = HOST) -> Claim:
    """A device that was there before anybody claimed it."""
    change = scene.desk.claims.adopt_free(
        NAME, "r", host=host, parent=parent, type_=type_, boot_id="b", now="t"
    )
    scene.desk.core.txn(transaction((), [change]))
    claim = scene.desk.records(NAME, host)[1]
    assert isinstance(claim, Claim)
    return claim


def test_a_free_name_is_defined(scene: Scene) -> None:
    """It is persistent, starts as the definition says, and has its attributes."""
    claim = taken_over(scene).record
    assert isinstance(claim, Claim)
    assert (claim.state, claim.host, claim.parent) == (ClaimState.DEFINED, HOST, "p0")
    assert (claim.persistent, claim.autostart, claim.attrs) == (True, True, (("a", "1"),))


def test_again_changes_nothing(scene: Scene) -> None:
    """What is kept so already is answered as it stands, at the revision that it has."""
    first = taken_over(scene).record
    again = taken_over(scene).record
    assert again == first


def test_what_the_definition_says_is_kept_from_now_on(scene: Scene) -> None:
    """A definition that was modified behind our back is taken as it is now."""
    taken_over(scene)
    changed = msgspec.structs.replace(WISH, autostart=False, attrs=(("a", "2"), ("b", "")))
    claim = taken_over(scene, changed).record
    assert isinstance(claim, Claim)
    assert (claim.autostart, claim.attrs) == (False, (("a", "2"), ("b", "")))
    assert scene.desk.records(NAME, HOST)[1] == claim


def test_an_adopted_device_is_kept_from_now_on(scene: Scene) -> None:
    """It stays active and adopted, and comes back as one that was defined."""
    before = adopted(scene)
    claim = taken_over(scene).record
    assert isinstance(claim, Claim)
    assert (claim.state, claim.adopted) == (ClaimState.ACTIVE, True)
    assert (claim.persistent, claim.autostart, claim.attrs) == (True, True, (("a", "1"),))
    assert claim.revision > before.revision


def test_who_holds_it_elsewhere_keeps_it(scene: Scene) -> None:
    """Another host is told as the holder."""
    adopted(scene, host=OTHER)
    error = taken_over(scene).error
    assert isinstance(error, NameTaken)
    assert error.holder is not None
    assert (error.holder.host, error.holder.parent) == (OTHER, "p0")


def test_another_parent_keeps_it(scene: Scene) -> None:
    """mdevctl defines one name on two parents; here the first has it."""
    taken_over(scene)
    error = taken_over(scene, msgspec.structs.replace(WISH, parent="p1")).error
    assert isinstance(error, NameTaken)
    assert str(error.holder) == f"{HOST}/p0 (defined)"


def test_a_reservation_keeps_it(scene: Scene) -> None:
    """Whoever reserved the name is waiting for it."""

    async def hold(client: Client) -> Result:
        (result,) = await reserve(client, [NAME], request="other", ttl=60)
        return result

    assert isinstance(asked(scene, hold).record, Hold)
    assert isinstance(taken_over(scene).error, NameTaken)


def test_another_type_is_not_taken_for_it(scene: Scene) -> None:
    """A device of the name that is of another type is not what was defined."""
    adopted(scene, type_="mtty-1")
    error = taken_over(scene).error
    assert isinstance(error, InvalidValue)
    assert "is claimed as mtty-1, not mtty-2" in error.message


def test_a_placeholder_is_no_device(scene: Scene) -> None:
    """What is being removed is not kept instead."""
    claim = adopted(scene)
    scene.desk.core.txn(transaction((), [scene.desk.claims.retire(claim, Removal(), now="t")]))
    scene.hosts.clear()  # nobody goes on with it
    assert isinstance(taken_over(scene).error, TryAgain)


def test_a_host_that_never_enrolled_is_told(scene: Scene) -> None:
    """Its definitions wait until there is such a host."""
    with pytest.raises(NotFound):
        taken_over(scene, msgspec.structs.replace(WISH, host="gpu99"))


# The files


def write(root: Path, parent: str, name: str, text: str) -> Path:
    """A file of mdevctl's."""
    path = root / "etc/mdevctl.d" / parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# As mdevctl 1.2.0 and 1.4.0 write it, to the byte (measured).
TEXT = """{
  "mdev_type": "mtty-2",
  "start": "auto",
  "attrs": [
    {
      "b": "ä\\"1\\n"
    },
    {
      "a": ""
    }
  ]
}"""
WANTED = Claim(
    name=NAME,
    host=HOST,
    revision=1,
    state=ClaimState.DEFINED,
    parent="p0",
    type="mtty-2",
    attrs=(("b", 'ä"1\n'), ("a", "")),
    persistent=True,
    autostart=True,
    request="r",
    since="t",
    created="t",
)


def test_a_definition_is_read_and_written_as_mdevctl_does(tmp_path: Path) -> None:
    """To the byte, with the attributes in their order."""
    path = write(tmp_path, "p0", NAME, TEXT)
    definitions = Definitions(tmp_path)
    (found,) = definitions.read()
    assert found == Definition(path, NAME, "p0", "mtty-2", autostart=True, attrs=WANTED.attrs)
    path.unlink()
    assert definitions.write(WANTED, force=False)
    assert (path.read_text(), path.stat().st_mode & 0o777) == (TEXT, 0o644)
    assert [one.name for one in path.parent.iterdir()] == [NAME]
    assert [one.name for one in path.parent.parent.iterdir()] == ["p0"]
    bare = msgspec.structs.replace(WANTED, attrs=(), autostart=False, parent="p1")
    definitions.write(bare, force=False)
    text = definitions.place(bare).read_text()
    assert text == '{\n  "mdev_type": "mtty-2",\n  "start": "manual",\n  "attrs": []\n}'


def test_what_says_the_same_is_left_as_it_is(tmp_path: Path) -> None:
    """However it is spelt, not a byte of it is touched."""
    text = '{"attrs":[{"b":"ä\\"1\\n"},{"a":""}],"start":"auto","mdev_type":"mtty-2","more":1}'
    path = write(tmp_path, "p0", NAME, text)
    assert not Definitions(tmp_path).write(WANTED, force=True)
    assert path.read_text() == text


@pytest.mark.parametrize("text", [TEXT.replace("auto", "manual"), TEXT[:40], ""])
def test_what_says_something_else_is_replaced_by_force_alone(tmp_path: Path, text: str) -> None:
    """Also a torn file may be all that is left of something."""
    path = write(tmp_path, "p0", NAME, text)
    with pytest.raises(NameTaken, match="another definition is there; to replace it: --force"):
        Definitions(tmp_path).write(WANTED, force=False)
    assert path.read_text() == text
    assert Definitions(tmp_path).write(WANTED, force=True)
    assert path.read_text() == TEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:40],
        "[]",
        "\xff",
        '{"mdev_type": "mtty-2"}',
        '{"mdev_type": "../x", "start": "auto"}',
        '{"mdev_type": "x", "start": "auto", "attrs": [{"a": "1", "b": "2"}]}',
        '{"mdev_type": "x", "start": "auto", "attrs": [{}]}',
        '{"mdev_type": "x", "start": "auto", "attrs": [{"a=b": "1"}]}',
        '{"mdev_type": "x", "start": "auto", "attrs": [{"a": 1}]}',
        '{"mdev_type": "x", "start": "auto", "attrs": [{"../a": "1"}]}',
    ],
)
def test_a_file_that_cannot_be_used_stops_no_other(tmp_path: Path, text: str) -> None:
    """It is told by its path, and those beside it are read."""
    torn = write(tmp_path, "p0", "00000000-0000-4000-8000-000000000000", "")
    torn.write_bytes(text.encode("latin-1"))
    write(tmp_path, "p0", NAME, TEXT)
    write(tmp_path, "scripts.d/callouts", NAME, "#!/bin/sh")
    write(tmp_path, "scripts.d", "README", "no definition")
    first, second = Definitions(tmp_path).read()
    assert isinstance(first, Unusable)
    assert (first.path, first.error.what) == (torn, str(torn))
    assert isinstance(second, Definition)


def test_what_mdevctl_lets_out_is_no_attribute(tmp_path: Path) -> None:
    """Definitions of older versions have no attributes, or null."""
    for attrs in ("", ', "attrs": null', ', "attrs": []'):
        path = write(tmp_path, "p0", NAME, f'{{"mdev_type": "x", "start": "manual"{attrs}}}')
        (found,) = Definitions(tmp_path).read()
        assert found == Definition(path, NAME, "p0", "x", autostart=False, attrs=())


def test_without_mdevctl_there_are_no_definitions(tmp_path: Path) -> None:
    """That is told, and not taken for a host without definitions."""
    with pytest.raises(NotFound):
        list(Definitions(tmp_path).read())
