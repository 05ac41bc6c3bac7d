"""What tests of a whole agent share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.host import Host

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "h")
