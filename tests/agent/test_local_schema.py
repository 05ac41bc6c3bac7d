"""The local socket against its own OpenAPI document, searched with schemathesis."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from docker.transport import UnixHTTPAdapter
from hypothesis import HealthCheck, given, settings

from agent import simulated
from tests.support.agents import AgentProcess, SimulatedHost
from tests.support.desk import NAME, TYPE
from tests.support.local_client import ask_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coordinator.embedded import EmbeddedEtcd

URL = "http://agent"
POSITIVE = schemathesis.GenerationMode.POSITIVE


class Searched:
    """An agent's socket: its document, and a session that reaches it."""

    def __init__(self, socket: Path) -> None:
        self.document = ask_blocking(socket, "GET", "/openapi.json").body
        self.session = requests.Session()
        self.session.mount(URL, UnixHTTPAdapter(f"http+unix://{socket}"))
        self.session.trust_env = False


@pytest.fixture(scope="module")
def searched(etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    """An agent of a host with some devices and room for more."""
    host = SimulatedHost(tmp_path_factory.mktemp("s") / "h", "gpu01", types={TYPE: 64}).init()
    with AgentProcess(host, [etcd.endpoint], uuid.uuid4().hex) as agent:
        agent.start()
        socket = host.directory / "run" / "agent.sock"
        parent = next((host.directory / "sys/class/mdev_bus").iterdir()).name
        simulated.create(host.directory, parent, TYPE, NAME)
        found = Searched(socket)
        try:
            yield found
        finally:
            found.session.close()
        assert agent.defects() == []


@pytest.mark.etcd
def test_no_request_gets_an_answer_that_the_document_does_not_have(searched: Searched) -> None:
    """Whatever is asked, by the document or against it: a status, type and form that it names."""
    schema = schemathesis.openapi.from_dict(searched.document)
    schema.config.update(base_url=URL)
    for path, methods in searched.document["paths"].items():
        for method, described in methods.items():
            operation = schema[path][method.upper()]
            takes = described.keys() & {"requestBody", "parameters"}
            for mode in schemathesis.GenerationMode if takes else [POSITIVE]:
                given(case=operation.as_strategy(generation_mode=mode))(searching(searched))()


def searching(searched: Searched) -> Callable[[schemathesis.Case[Any]], None]:
    """One request, whose answer is held to the document."""

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    def search(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(session=searched.session)

    return search
