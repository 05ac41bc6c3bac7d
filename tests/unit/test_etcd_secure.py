"""TLS both ways, and users: what the Store shows etcd, what it asks of it, and what it says."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from coordinator.credentials import Credentials
from coordinator.embedded import EmbeddedEtcd, free_ports
from coordinator.errors import MdevnsError, Misconfigured, NotAllowed, Unreachable
from coordinator.etcd import EtcdStore
from coordinator.store import Put, Txn, absent, get, prefix
from tests.support import rawetcd
from tests.support.agents import AgentProcess, SimulatedHost
from tests.support.local_client import ask_blocking
from tests.support.tls import EXPIRED, Authority, secure_etcd
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.tls import SecureEtcd

DEADLINE = 60  # seconds for what has to come
WRITE = Txn(success=(Put("/a", b"1"),))


@asynccontextmanager
async def opened(
    endpoint: str, credentials: Credentials, seconds: float = 5.0
) -> AsyncIterator[EtcdStore]:
    """A store with these credentials."""
    store = EtcdStore([endpoint], seconds, random.Random(0), credentials)
    try:
        yield store
    finally:
        await store.close()


async def refusal(endpoint: str, credentials: Credentials) -> str:
    """Why a server cannot be reached, of a write that was certainly not done."""
    async with opened(endpoint, credentials) as store:
        with pytest.raises(Unreachable) as caught:
            await store.txn(WRITE)
    return f"{caught.value.why}; {caught.value.hint}"


# --- certificates


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who signs for etcd and its clients."""
    return Authority(tmp_path / "ca")


@pytest.fixture
def etcd(authority: Authority) -> Iterator[SecureEtcd]:
    """An etcd that shows a certificate for its address only, and wants one."""
    with secure_etcd(authority, authority.issue("etcd", "127.0.0.1")) as server:
        yield server


@pytest.mark.etcd
async def test_both_sides_show_certificates(authority: Authority, etcd: SecureEtcd) -> None:
    """With its own certificate and the authority's a client writes, reads and watches."""
    async with opened(etcd.endpoint, authority.client()) as store:
        revision = (await store.txn(WRITE)).revision
        async with store.watch([prefix("/")], revision) as watch:
            assert (await anext(watch)).events[0].kv.value == b"1"


@pytest.mark.etcd
async def test_who_shows_no_certificate_is_told_so(authority: Authority, etcd: SecureEtcd) -> None:
    """Etcd's refusal of a client without a certificate is the reason in the error."""
    nothing = Credentials(cacert=authority.cacert)
    assert "set cert and key" in await refusal(etcd.endpoint, nothing)


@pytest.mark.etcd
async def test_an_expired_certificate_of_ours_is_told(
    authority: Authority, etcd: SecureEtcd
) -> None:
    """Etcd's refusal of an old certificate is the reason in the error."""
    why = await refusal(etcd.endpoint, authority.client(until=EXPIRED))
    assert "refuses our certificate" in why


@pytest.mark.etcd
async def test_a_certificate_of_somebody_else_is_told(
    authority: Authority, etcd: SecureEtcd, tmp_path: Path
) -> None:
    """Etcd's refusal of a certificate that its authority did not sign is the reason."""
    foreign = replace(Authority(tmp_path / "other").client(), cacert=authority.cacert)
    assert "refuses our certificate" in await refusal(etcd.endpoint, foreign)


@pytest.mark.etcd
async def test_a_wrong_authority_is_told(
    authority: Authority, etcd: SecureEtcd, tmp_path: Path
) -> None:
    """A server that the given authority did not sign for is not talked to."""
    wrong = replace(authority.client(), cacert=Authority(tmp_path / "other").cacert)
    assert "its certificate is not trusted" in await refusal(etcd.endpoint, wrong)


@pytest.mark.etcd
async def test_a_name_that_is_not_covered_is_told(authority: Authority, etcd: SecureEtcd) -> None:
    """A server whose certificate does not have the name that was asked for is not talked to."""
    why = await refusal(etcd.other_name, authority.client())
    assert "not trusted" in why
    assert "localhost" in why


@pytest.mark.etcd
async def test_an_expired_certificate_of_etcd_is_told(authority: Authority) -> None:
    """A server with an old certificate is not talked to, and the reason says old."""
    pair = authority.issue("etcd", "127.0.0.1", until=EXPIRED)
    with secure_etcd(authority, pair) as server:
        assert "expired" in await refusal(server.endpoint, authority.client())


@pytest.mark.etcd
async def test_a_server_that_speaks_otherwise_is_told(
    authority: Authority, etcd: SecureEtcd
) -> None:
    """https to a server without TLS, and http to one with it, are told apart from no server."""
    plain = etcd.server.endpoint.replace("http:", "https:")
    assert "write http://" in await refusal(plain, authority.client())
    secure = etcd.endpoint.replace("https:", "http:")
    assert "write https://" in await refusal(secure, Credentials())


@pytest.mark.etcd
async def test_certificates_are_read_again(authority: Authority, etcd: SecureEtcd) -> None:
    """After both sides' certificates were replaced the same store connects with the new ones."""
    credentials = authority.client(until=EXPIRED)
    async with opened(etcd.endpoint, credentials, DEADLINE) as store:
        with pytest.raises(Unreachable):
            await store.txn(WRITE)
        authority.client()  # the same files, renewed
        assert (await store.txn(WRITE)).succeeded
        etcd.server.kill()
        authority.issue("etcd", "127.0.0.1")
        authority.client()
        etcd.server.restart()
        assert (await store.txn(WRITE)).succeeded


# --- what cannot be used, or is not safe


def _without_key(_: Authority, whole: Credentials) -> Credentials:
    return replace(whole, key=None)


def _absent(_: Authority, whole: Credentials) -> Credentials:
    assert whole.cert is not None
    whole.cert.unlink()
    return whole


def _no_pem(authority: Authority, whole: Credentials) -> Credentials:
    authority.cacert.write_text("no certificate")
    return whole


def _open_to_all(_: Authority, whole: Credentials) -> Credentials:
    assert whole.key is not None
    whole.key.chmod(0o644)
    return whole


def _of_another(authority: Authority, whole: Credentials) -> Credentials:
    return replace(whole, key=authority.issue("another").key)


def _no_password(_: Authority, whole: Credentials) -> Credentials:
    return replace(whole, user="u")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without_key, "client.pem: is of no use without key"),
        (_absent, "No such file"),
        (_no_pem, "has no certificate in PEM"),
        (_open_to_all, "others may read or change it (mode 0644); chmod 600"),
        (_of_another, "another.key is not this certificate's key"),
        (_no_password, "user u: is of no use without password_file"),
    ],
)
def test_what_cannot_be_used_is_a_misconfiguration(
    authority: Authority,
    spoil: Callable[[Authority, Credentials], Credentials],
    told: str,
) -> None:
    """Certificates and secrets are looked at before anything is tried, and the file is named."""
    with pytest.raises(Misconfigured) as caught:
        EtcdStore(["https://127.0.0.1:1"], credentials=spoil(authority, authority.client()))
    assert told in caught.value.message


def _half_replaced(authority: Authority, key: Path) -> Callable[[], object]:
    old = key.read_bytes()
    authority.issue("client")
    new = key.read_bytes()
    key.write_bytes(old)
    return lambda: key.write_bytes(new)


def _readable_for_a_moment(_: Authority, key: Path) -> Callable[[], object]:
    key.chmod(0o644)
    return partial(key.chmod, 0o600)


@pytest.mark.etcd
@pytest.mark.parametrize("spoil", [_half_replaced, _readable_for_a_moment])
def test_an_agent_waits_for_certificates_that_are_being_replaced(
    authority: Authority,
    tmp_path: Path,
    spoil: Callable[[Authority, Path], Callable[[], object]],
) -> None:
    """A restart in that moment ends with no exit code; it says why it waits, and enrols."""
    whole = authority.client()
    assert whole.key is not None
    mend = spoil(authority, whole.key)
    files = {"--cacert": whole.cacert, "--cert": whole.cert, "--key": whole.key}
    config = tmp_path / "mdevns.toml"
    config.write_text("".join(f'{flag[2:]} = "{path}"\n' for flag, path in files.items()))
    host = SimulatedHost(tmp_path / "h", "gpu01").init()
    with secure_etcd(authority, authority.issue("etcd", "127.0.0.1")) as etcd:
        agent = AgentProcess(host, [etcd.endpoint], "test", config=config)
        with agent:
            agent.start(wait=False)
            wait_until(lambda: agent.events("cannot enrol") or not agent.running, DEADLINE)
            assert agent.running, agent.tail()
            ready = ask_blocking(host.directory / "run/agent.sock", "GET", "/readyz")
            assert ready.status == 503
            assert "client" in str(ready.body["reasons"])
            mend()
            wait_until(lambda: agent.enrolled, DEADLINE)


def test_what_is_configured_for_an_agent_is_checked_at_once(authority: Authority) -> None:
    """A store that waits for files waits for no half of a pair."""
    with pytest.raises(Misconfigured, match="is of no use without key"):
        EtcdStore(
            ["https://127.0.0.1:1"],
            credentials=_without_key(authority, authority.client()),
            waits=True,
        )


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("secret\n", 0o604, "others may read"),
        ("\n", 0o600, "does not have a password"),
        ("one\ntwo\n", 0o600, "does not have a password"),
    ],
)
def test_a_password_file_has_one_secret_line(
    tmp_path: Path, text: str, mode: int, told: str
) -> None:
    """A file that others may read, that is empty or has more lines, is not taken."""
    file = tmp_path / "password"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(Misconfigured, match=told):
        EtcdStore(["http://127.0.0.1:1"], credentials=Credentials(user="u", password_file=file))


def test_secrets_do_not_go_in_the_clear(authority: Authority, tmp_path: Path) -> None:
    """Certificates without https, and a password over the network without it, are refused."""
    file = tmp_path / "password"
    file.write_text("secret")
    file.chmod(0o600)
    for endpoint, credentials in (
        ("http://127.0.0.1:1", authority.client()),
        ("http://etcd1:2379", Credentials(user="u", password_file=file)),
    ):
        with pytest.raises(Misconfigured, match="in the clear"):
            EtcdStore([endpoint], credentials=credentials)


# --- user and password


@pytest.fixture
def server() -> Iterator[EmbeddedEtcd]:
    """An etcd of the test's own, still without users."""
    with EmbeddedEtcd(extra=["--unsafe-no-fsync", "--bcrypt-cost=4"]) as own:
        yield own


@pytest.fixture
def user(tmp_path: Path) -> Credentials:
    """A user, and the right password."""
    return credentials_of(tmp_path, "agent", "secret")


def credentials_of(directory: Path, name: str, password: str) -> Credentials:
    """A user, with the password in a file."""
    file = directory / f"{name}.password"
    with open(file, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened_file:
        opened_file.write(f"{password}\n")
    return Credentials(user=name, password_file=file)


@pytest.mark.etcd
async def test_a_user_is_known_by_its_password(
    server: EmbeddedEtcd, user: Credentials, tmp_path: Path
) -> None:
    """The right password opens, a wrong one and an unknown user are told."""
    rawetcd.switch_auth_on(server.endpoint, agent="secret")
    async with opened(server.endpoint, user) as store:
        assert (await store.txn(WRITE)).succeeded
    for name in ("agent", "nobody"):
        wrong = credentials_of(tmp_path, name, "guessed")
        async with opened(server.endpoint, wrong) as store:
            with pytest.raises(NotAllowed):
                await store.txn(WRITE)


@pytest.mark.etcd
async def test_users_may_be_asked_for_later(server: EmbeddedEtcd, user: Credentials) -> None:
    """A user is configured before etcd asks for one, and is shown once it does."""
    async with opened(server.endpoint, user) as store:
        assert (await store.txn(WRITE)).succeeded
        rawetcd.switch_auth_on(server.endpoint, agent="secret")
        assert (await store.txn(WRITE)).succeeded
        rawetcd.change_the_users(server.endpoint)
        assert (await store.txn(WRITE)).succeeded


@pytest.mark.etcd
async def test_a_token_that_is_forgotten_is_taken_anew(
    server: EmbeddedEtcd, user: Credentials
) -> None:
    """A server that restarts has forgotten its tokens, and calls and watches go on."""
    rawetcd.switch_auth_on(server.endpoint, agent="secret")
    async with opened(server.endpoint, user, DEADLINE) as store:
        first = (await store.txn(WRITE)).revision
        async with store.watch([get("/a")], first) as watch, asyncio.timeout(DEADLINE):
            assert (await anext(watch)).revision == first
            server.kill()
            server.restart()
            second = (await store.txn(WRITE)).revision
            assert (await anext(watch)).revision == second
        assert second == first + 1


@pytest.mark.etcd
async def test_a_token_that_expires_is_taken_anew(tmp_path: Path, user: Credentials) -> None:
    """Signed tokens end at a fixed time: every write before and after is done once."""
    secret = tmp_path / "secret"
    secret.write_bytes(random.Random(0).randbytes(32))
    signed = f"--auth-token=jwt,priv-key={secret},sign-method=HS256,ttl=1s"
    with EmbeddedEtcd(extra=[signed, "--unsafe-no-fsync", "--bcrypt-cost=4"]) as server:
        rawetcd.switch_auth_on(server.endpoint, agent="secret")
        async with opened(server.endpoint, user, DEADLINE) as store, asyncio.timeout(DEADLINE):
            before = (await store.txn(WRITE)).revision
            tokens, writes = {store._servers._tokens.at_hand}, 0
            while len(tokens) < 3:
                await store.txn(WRITE)
                writes += 1
                tokens.add(store._servers._tokens.at_hand)
            assert (await store.txn(WRITE)).revision == before + writes + 1


@pytest.mark.etcd
async def test_a_password_that_was_changed_is_read_again(
    server: EmbeddedEtcd, tmp_path: Path
) -> None:
    """The next token is asked for with the password that the file has then."""
    credentials = credentials_of(tmp_path, "agent", "wrong")
    rawetcd.switch_auth_on(server.endpoint, agent="secret")
    async with opened(server.endpoint, credentials) as store:
        with pytest.raises(NotAllowed):
            await store.txn(WRITE)
        credentials_of(tmp_path, "agent", "secret")
        assert (await store.txn(WRITE)).succeeded


async def test_a_dead_address_is_told_in_words() -> None:
    """Of a port where nobody listens the error says that, and how to name another."""
    async with opened(f"http://127.0.0.1:{free_ports(1)[0]}", Credentials(), 0.3) as store:
        with pytest.raises(MdevnsError, match="connection refused; nothing was done"):
            await store.txn(WRITE)


@pytest.mark.etcd
async def test_the_check_of_the_role_is_not_in_the_answers(server: EmbeddedEtcd) -> None:
    """A transaction that names the writable key answers, and changes, as without it."""
    nested = Txn((absent("/a"),), (Put("/a", b"1"),), (get("/a"),))
    guarded = Txn((absent("/guard"),), (nested, get("/a")), (get("/guard"),))
    first = EtcdStore([server.endpoint], 5.0, random.Random(0), writable="/names/")
    async with opened(server.endpoint, Credentials()) as plain:
        try:
            done = await first.txn(guarded)
            again = await first.txn(guarded)
            assert again == await plain.txn(guarded)
            assert done.revision == again.revision  # nothing was changed a second time
            revision = (await plain.txn(Txn(success=(Put("/guard", b""),)))).revision
            refused = await first.txn(guarded)
            assert refused == await plain.txn(guarded)
            assert (refused.succeeded, refused.revision) == (False, revision)
            assert len(refused.results) == 1
        finally:
            await first.close()


@pytest.mark.etcd
async def test_the_check_of_the_role_takes_no_place_from_a_name(server: EmbeddedEtcd) -> None:
    """A commit of 126 names with two keys each, under guards, is not too long with it."""
    names = [f"/names/{number}" for number in range(126)]
    inner = tuple(Txn((absent(n),), (Put(n, b""), Put(f"{n}/c", b"")), (get(n),)) for n in names)
    whole = Txn((absent("/guard"), absent("/hold")), inner, (get("/guard"), get("/hold")))
    store = EtcdStore([server.endpoint], 5.0, random.Random(0), writable="/names/")
    try:
        assert len((await store.txn(whole)).results) == 126
        assert len((await store.range(prefix("/names/"))).kvs) == 252
    finally:
        await store.close()
