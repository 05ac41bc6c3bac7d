"""Names, and records that can or cannot be read."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import InvalidValue
from coordinator.model import (
    Claim,
    ClaimValue,
    NameValue,
    Unreadable,
    decode,
    encode,
    parse_attribute,
    parse_label,
    parse_name,
    parse_request,
    random_name,
    read_claim,
)
from coordinator.states import ClaimState
from coordinator.store import KeyValue

KEY = "/mdevns/c/hosts/gpu01/claims/11111111-2222-4333-8444-555555555555"


def kv(value: bytes, key: str = KEY) -> KeyValue:
    return KeyValue(key, value, create_revision=3, mod_revision=4, version=2, lease=0)


@given(st.uuids())
def test_a_name_is_a_uuid_in_lower_case(uuid: object) -> None:
    """Upper and mixed case are folded, as the kernel does."""
    text = str(uuid)
    if int(text.replace("-", ""), 16):
        assert parse_name(text.upper()) == parse_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00000000-0000-0000-0000-000000000000",
        "{11111111-2222-4333-8444-555555555555}",
        "11111111222243338444555555555555",
        " 11111111-2222-4333-8444-555555555555",
        "11111111-2222-4333-8444-555555555555\n",
        "11111111-2222-4333-8444-55555555555g",
        "1111111-12222-4333-8444-555555555555",
        "11111111-2222-4333-8444-5555555555555",
        "١1111111-2222-4333-8444-555555555555",  # noqa: RUF001 - a digit that is not ASCII
    ],
)
def test_anything_else_is_not_a_name(text: str) -> None:
    """Nil and every other shape is EINVAL, exit code 8, whatever the kernel would take."""
    with pytest.raises(InvalidValue) as caught:
        parse_name(text)
    assert (caught.value.errno, caught.value.exit_code) == ("EINVAL", 8)


def test_a_random_name_is_of_version_4() -> None:
    """Names that are made up are version 4 UUIDs."""
    name = random_name(random.Random(1).getrandbits(128))
    assert parse_name(name) == name
    assert name[14] == "4"


@pytest.mark.parametrize("text", ["", "a/b", "..", "a b", "x" * 129, "-a", "ä"])
def test_labels_and_requests_stay_in_their_key(text: str) -> None:
    """A host, parent, type or request cannot reach out of its place in a key or a path."""
    with pytest.raises(InvalidValue):
        parse_label(text, "host")
    with pytest.raises(InvalidValue):
        parse_request(text)


@pytest.mark.parametrize("text", ["", "novalue", "=x", "../up=1", "/abs=1", "a=" + "x" * 4096])
def test_attributes_stay_in_their_device(text: str) -> None:
    """An attribute's name cannot leave the device's directory, and its value fits one write."""
    with pytest.raises(InvalidValue):
        parse_attribute(text)


def test_an_attribute_keeps_its_value_as_it_is() -> None:
    """Only the first equals sign separates."""
    assert parse_attribute("vgpu/params=a=b,c") == ("vgpu/params", "a=b,c")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"null", "object"),
        (b"\xff\xfe", "malformed"),
        (b'{"v":2,"host":null,"request":"r"}', "newer"),
        (b'{"v":1,"host":null}', "request"),
        (b'{"v":1,"host":null,"request":"r","extra":1}', "extra"),
        (b'{"v":1,"host":7,"request":"r"}', "host"),
        (b"[" * 100_000, "array"),
        (b'{"v":1,"host":null,"request":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_or_newer_record_is_unreadable_and_says_why(value: bytes, why: str) -> None:
    """What is stored never raises: it becomes a value that `check` can report."""
    record = decode(kv(value), NameValue)
    assert isinstance(record, Unreadable)
    assert why in record.why
    assert record.revision == 4


def test_a_claim_survives_its_way_through_the_store() -> None:
    """What is written is what is read, and name and host come from the key."""
    value = ClaimValue(
        state=ClaimState.ACTIVE,
        parent="0000:3b:00.0",
        type="mtty-2",
        attrs=(("a", "1"), ("b", "2")),
        request="r",
        since="s",
        created="c",
    )
    claim = read_claim(kv(encode(value)))
    assert isinstance(claim, Claim)
    assert claim.value() == value
    assert encode(claim.value()) == encode(value)
    assert (claim.name, claim.host, claim.revision) == (KEY[-36:], "gpu01", 4)


def test_a_claim_under_a_key_that_is_no_name_is_unreadable() -> None:
    """A key that somebody wrote by hand stops nothing else."""
    good = encode(
        ClaimValue(state=ClaimState.ACTIVE, parent="p", type="t", request="r", since="", created="")
    )
    assert isinstance(read_claim(kv(good, "/mdevns/c/hosts/h/claims/nonsense")), Unreadable)
