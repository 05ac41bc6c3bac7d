"""Every key that mdevns has in etcd. No other module spells one."""

from __future__ import annotations

from functools import cached_property

import msgspec

__all__ = ["Keys", "last_part"]


class Keys(msgspec.Struct, frozen=True, dict=True):
    """The keys of one cluster, all under `/mdevns/<cluster>/`.

    `names` is the namespace: one flat index, so that a create anywhere meets a create
    anywhere. What an agent watches, `of_host`, holds its own host's records only.
    """

    cluster: str = "default"

    @cached_property
    def root(self) -> str:
        """The prefix of everything that belongs to the cluster."""
        return f"/mdevns/{self.cluster}/"

    @cached_property
    def names(self) -> str:
        """The prefix of the namespace; no name is empty, so that no key is just this."""
        return f"{self.root}names/"

    def name(self, name: str) -> str:
        """The name is taken: by which host (or none yet) and request."""
        return f"{self.names}{name}"

    @cached_property
    def hosts(self) -> str:
        """The prefix of what belongs to hosts."""
        return f"{self.root}hosts/"

    def of_host(self, host: str) -> str:
        """The prefix of what belongs to one host."""
        return f"{self.hosts}{host}/"

    def claims(self, host: str) -> str:
        """The prefix of a host's claims."""
        return f"{self.hosts}{host}/claims/"

    def claim(self, host: str, name: str) -> str:
        """One claim of a host."""
        return f"{self.hosts}{host}/claims/{name}"

    def epoch(self, host: str) -> str:
        """The fencing token: written by every enrolment and evict, compared by value."""
        return f"{self.hosts}{host}/epoch"

    def identity(self, host: str) -> str:
        """Which machine this host is."""
        return f"{self.hosts}{host}/identity"

    def session(self, host: str) -> str:
        """The agent's leased sign of life."""
        return f"{self.hosts}{host}/session"

    def parents(self, host: str) -> str:
        """The prefix of a host's parents."""
        return f"{self.hosts}{host}/parents/"

    def parent(self, host: str, parent: str) -> str:
        """A parent's types and available instances."""
        return f"{self.hosts}{host}/parents/{parent}"

    def findings(self, host: str) -> str:
        """The prefix of what a host's agent found and does not own."""
        return f"{self.hosts}{host}/findings/"

    def finding(self, host: str, name: str) -> str:
        """A device that is not claimed by its host: foreign, or a conflict."""
        return f"{self.hosts}{host}/findings/{name}"

    def restored(self, host: str) -> str:
        """What a host's agent has to say of the restore that is under way."""
        return f"{self.hosts}{host}/restored"

    def host_of(self, key: str) -> str | None:
        """The host to which a key belongs; None for what belongs to none."""
        host, slash, _ = key.removeprefix(self.hosts).partition("/")
        return host if key.startswith(self.hosts) and slash else None

    @property
    def machines(self) -> str:
        """The prefix of machines; also the index of all hosts."""
        return f"{self.root}machines/"

    def machine(self, machine_id: str) -> str:
        """Which host this machine is."""
        return f"{self.root}machines/{machine_id}"

    def outcomes(self, request: str) -> str:
        """The prefix of how a request's names failed."""
        return f"{self.root}outcomes/{request}/"

    def outcome(self, request: str, name: str) -> str:
        """How a request failed for one name."""
        return f"{self.root}outcomes/{request}/{name}"

    def spent(self, id_: str) -> str:
        """A transaction of which no copy may be applied any more (`coordinator.late`)."""
        return f"{self.root}spent/{id_}"

    @property
    def audits(self) -> str:
        """The prefix of the records of forced acts."""
        return f"{self.root}audit/"

    def audit(self, time: str, id_: str) -> str:
        """One forced act."""
        return f"{self.root}audit/{time}-{id_}"

    @cached_property
    def hold(self) -> str:
        """Present while a restored store is being reconciled, or a namespace imported."""
        return f"{self.root}hold"

    @property
    def importer(self) -> str:
        """The sign of life of who imports, on a lease."""
        return f"{self.root}importer"

    @property
    def imports(self) -> str:
        """The prefix of what imports that are not finished have written."""
        return f"{self.root}imports/"

    def import_batch(self, id_: str, number: int) -> str:
        """One batch of an import; written at the revision of all that is in it."""
        return f"{self.root}imports/{id_}/{number}"

    def is_claim(self, key: str) -> bool:
        """Whether a key is that of a claim, of whichever host."""
        host = self.host_of(key)
        return host is not None and key.startswith(self.claims(host))


def last_part(key: str) -> str:
    """The last component of a key: the name, the host's part, the parent."""
    return key.rpartition("/")[2]
