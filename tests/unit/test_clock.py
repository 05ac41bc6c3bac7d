"""The machine's clocks, as people are told of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from coordinator.clock import SystemClock


def test_time_of_day() -> None:
    """The time of day is told in RFC 3339 to the microsecond, also where a second has passed."""
    clock = SystemClock()
    seen: set[str] = set()
    while len(seen) < 2:
        before = datetime.now(UTC)
        told = clock.now()
        after = datetime.now(UTC)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told)
        assert before <= datetime.fromisoformat(told) <= after
        seen.add(told.partition(".")[0])
