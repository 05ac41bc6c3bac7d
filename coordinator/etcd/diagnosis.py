"""What gRPC does not tell of a connection: why it cannot be made, and what the server showed.

The connection is made once more with Python's own sockets and TLS. Nothing of HTTP/2 is
spoken: etcd sees a connection that ends.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import ssl
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from coordinator.errors import Misconfigured

if TYPE_CHECKING:
    from coordinator.credentials import Certificates
    from coordinator.endpoints import Endpoint

__all__ = ["Reason", "certificate_of", "version_of", "why_unreachable"]

_TIME = 2.0  # seconds for all of it
_REFUSAL = 0.2  # seconds in which a server that refuses our certificate says so


class Reason(NamedTuple):
    """Why there is no connection. `lasting`: not by waiting, somebody has to mend it."""

    text: str
    lasting: bool


async def why_unreachable(endpoint: Endpoint, certificates: Certificates) -> Reason | None:
    """The reason; None when there is none to be found."""
    try:
        async with asyncio.timeout(_TIME):
            if endpoint.secure:
                return await _secure(endpoint, certificates)
            return await _plain(endpoint)
    except TimeoutError:
        return None


async def certificate_of(endpoint: Endpoint, certificates: Certificates) -> bytes | None:
    """The certificate that a server shows, in DER; None where it shows none, or not to us."""
    if not endpoint.secure:
        return None
    try:
        async with asyncio.timeout(_TIME):
            context = certificates.context()
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
    except (Misconfigured, OSError, TimeoutError):  # TLS errors are OSErrors too
        return None
    try:
        shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown
    finally:
        writer.transport.abort()


async def version_of(endpoint: Endpoint, certificates: Certificates) -> str | None:
    """The version that a server tells over HTTP to whoever may connect; None: it does not."""
    try:
        return await asyncio.to_thread(_version, endpoint, certificates)
    except (Misconfigured, OSError, http.client.HTTPException, ValueError, RecursionError):
        return None


def _version(endpoint: Endpoint, certificates: Certificates) -> str | None:
    connection = (
        http.client.HTTPSConnection(
            endpoint.host, endpoint.port, timeout=_TIME, context=certificates.context("http/1.1")
        )
        if endpoint.secure
        else http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_TIME)
    )
    with closing(connection):
        connection.request("GET", "/version")
        told = json.load(connection.getresponse())
    return str(told["etcdserver"]) if isinstance(told, dict) and "etcdserver" in told else None


async def _secure(endpoint: Endpoint, certificates: Certificates) -> Reason | None:
    try:
        context = certificates.context()
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
    except Misconfigured as error:
        return Reason(error.message, lasting=True)
    except ssl.SSLError as error:
        return _refused(error, certificates)
    except ConnectionResetError:
        # A server that ends does so too, so it may be there again.
        return Reason("it hangs up on TLS; if it speaks none, write http://", lasting=False)
    except OSError as error:
        return _reason(error)
    # TLS 1.3 lets a client end its handshake before the server has looked at its certificate:
    # the refusal is what is read next.
    try:
        async with asyncio.timeout(_REFUSAL):
            await reader.read(1)
    except ssl.SSLError as error:
        return _refused(error, certificates)
    except (OSError, TimeoutError):
        pass  # it had nothing against the connection
    finally:
        writer.transport.abort()
    return None


async def _plain(endpoint: Endpoint) -> Reason | None:
    try:
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError as error:
        return _reason(error)
    writer.close()
    if await _speaks_tls(endpoint):
        return Reason("it speaks TLS: write https://", lasting=True)
    return None


async def _speaks_tls(endpoint: Endpoint) -> bool:
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=unverified)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it wants to see a certificate, say
    except OSError:
        return False
    writer.transport.abort()
    return True


def _reason(error: OSError) -> Reason | None:
    if isinstance(error, socket.gaierror):
        return Reason(f"no such host: {error.strerror}", lasting=False)
    # asyncio's own text has the address; of several addresses that failed it has no errno.
    return Reason(os.strerror(error.errno).lower(), lasting=False) if error.errno else None


def _refused(error: ssl.SSLError, certificates: Certificates) -> Reason:
    return Reason(_handshake(error, certificates), lasting=True)


def _handshake(error: ssl.SSLError, certificates: Certificates) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        # OpenSSL's words: expired, of another name, signed by somebody unknown.
        return f"its certificate is not trusted: {error.verify_message}".rstrip(".")
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "wrong version number" in reason or "record layer failure" in reason:
        return "it does not speak TLS: write http://"
    if "alert" not in reason:
        return f"TLS: {reason}"
    if not certificates.ours:
        return "it wants to see a certificate: set cert and key"
    return f"it refuses our certificate: {reason}"
