"""Certificates expire, and new ones are put in place: nothing is restarted for it."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta

from tests.chaos.faults import Fault, HostFault
from tests.support.waiting import wait_until

__all__ = ["CERTIFICATE_FAULTS"]

_LIFE = 3.0  # seconds for which a certificate is still good
_SOON = 30.0  # seconds
_EXPIRED = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED


class ServerCertificatesExpire(Fault):
    """Those of all members expire; whoever connects anew refuses them."""

    kind = "etcd's certificates expire"
    slow = True
    everybody = True

    def inject(self) -> None:
        """Put short ones in place, wait until they are refused, and break connections off."""
        until = datetime.now(UTC) + timedelta(seconds=_LIFE)
        for index in range(self.members.count):
            self.members.certify(index, until)
        wait_until(lambda: all(map(self._refused, self.members.secure_endpoints)), _SOON)
        for index in range(self.members.count):
            self.members.reset(index)
        for host in self.cluster.hosts:
            self.cluster.await_session(host, there=False)
        for index in range(self.members.count):
            self.members.pass_all(index)

    def _refused(self, endpoint: str) -> bool:
        """Whether somebody who connects now is shown one that has expired."""
        tls = self.cluster.authority.cacert.parent
        context = ssl.create_default_context(cafile=tls / "ca.pem")
        context.load_cert_chain(tls / "operator.pem", tls / "operator.key")
        port = int(endpoint.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), _SOON) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="127.0.0.1"):
                    return False
            except ssl.SSLCertVerificationError as error:
                return error.verify_code == _EXPIRED

    def heal(self) -> None:
        """Put new ones in place."""
        for index in range(self.members.count):
            self.members.certify(index)


class AgentCertificateExpires(HostFault):
    """An agent's own expires; etcd refuses it when it connects anew."""

    kind = "an agent's certificate expires"
    slow = True
    lasts = 3.0

    def inject(self) -> None:
        """Put a short one in place, break its connections off, and wait until it is not seen."""
        self.host.certify_for(_LIFE)
        self.cluster.hold(_LIFE + 0.5)
        self.host.reset()
        self.cluster.await_session(self.host.name, there=False)
        self.host.connect()

    def heal(self) -> None:
        """Put a new one in place."""
        assert not self.cluster.has_session(self.host.name), "etcd let an expired one in"
        self.host.certify()


CERTIFICATE_FAULTS: tuple[type[Fault], ...] = (ServerCertificatesExpire, AgentCertificateExpires)
