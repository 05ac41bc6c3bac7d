"""What is told at the end: a table for people, and all of it as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.history import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.chaos.history import Entry
    from tests.chaos.judge import Refusal
    from tests.chaos.schedule import Injected

__all__ = ["Report"]

_UNKNOWN = 11  # the exit code that says so


@dataclass
class Report:
    """The figures of a run. Times in seconds."""

    seed: int
    server: str
    lasted: float
    tried: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, int] = field(default_factory=dict)
    names: int = 0
    looks: int = 0
    looks_with_etcd: int = 0
    refusal: tuple[float, str, str] = (0.0, "", "")
    violations: list[str] = field(default_factory=list)
    schedule: list[dict[str, object]] = field(default_factory=list)

    def count(self, entries: Iterable[Entry]) -> None:
        """Count what was asked and told."""
        for entry in entries:
            verb = entry.asked.verb.value
            code = entry.told.code if entry.told is not None else _UNKNOWN
            self.tried[verb] += 1
            self.codes["no answer" if entry.told is None else str(code)] += 1
            kinds = {0: self.done, _UNKNOWN: self.unknown}
            kinds.get(code, self.refused)[verb] += 1

    def count_faults(self, kinds: Iterable[str], injected: Sequence[Injected]) -> None:
        """Count what was injected; a kind that was not is told as zero."""
        counts = Counter(one.kind for one in injected)
        self.faults = {kind: counts[kind] for kind in kinds}
        self.schedule = [
            vars(one) | {"sick": sorted(one.sick), "off": sorted(one.off)} for one in injected
        ]

    def told_refusal(self, refusal: Refusal, injected: Sequence[Injected]) -> None:
        """The longest refusal, and what was going on when it began."""
        length, host, begun = refusal
        amid = [one for one in injected if one.begun <= begun]
        what = f"{amid[-1].kind} ({amid[-1].where})" if amid else "nothing"
        self.refusal = (round(length, 2), host, what)

    def save(self, file: Path) -> None:
        """Write it all as JSON."""
        file.write_text(json.dumps(vars(self), indent=2) + "\n")

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"chaos: seed {self.seed}, {self.lasted:.0f} s, {self.server}"
        yield ""
        yield f"{'asked':<10}{'tried':>8}{'done':>8}{'refused':>9}{'unknown':>9}"
        for verb in Verb:
            yield self._row(verb.value, verb.value)
        yield self._row("all", *Verb)
        codes = sorted(self.codes.items(), key=lambda item: (len(item[0]), item[0]))
        yield "exit codes: " + ", ".join(f"{code}: {count}" for code, count in codes)
        yield ""
        yield f"{'fault':<36}{'injected':>9}"
        for kind, count in self.faults.items():
            yield f"{kind:<36}{count:>9}"
        yield f"{'all':<36}{sum(self.faults.values()):>9}"
        yield ""
        yield f"names checked        {self.names}"
        yield f"looks from outside   {self.looks}, {self.looks_with_etcd} of them with etcd"
        length, host, amid = self.refusal
        yield f"longest refusal of a healthy host: {length:.1f} s ({host}, {amid})"
        yield f"violations           {len(self.violations)}"
        yield from self.violations[:20]

    def _row(self, title: str, *verbs: str) -> str:
        counts = [
            sum(counter[verb] for verb in verbs)
            for counter in (self.tried, self.done, self.refused, self.unknown)
        ]
        tried, done, refused, unknown = counts
        return f"{title:<10}{tried:>8}{done:>8}{refused:>9}{unknown:>9}"
