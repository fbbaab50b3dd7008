"""The decisions of a run for people: those alike together, a bounded number of them, and how many there were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tao_flows.records import DecisionRecord
from tao_flows.report.weigh import Explained, explain

MOST_KINDS: Final = 24
"""Kinds of decision that are shown, each by the last of its kind."""
MOST_TIMED: Final = 5_000
"""Decisions that the time line takes into account: what waited is drawn as far as these tell."""
_Kind = tuple[str, str, str, str, bool]


@dataclass(frozen=True, slots=True)
class Samples:
    """What is shown of a run's decisions."""

    total: int
    kinds: int
    shown: tuple[tuple[str, Explained], ...]
    """Task and decision; what was put off, moved or denied first, then by how many are alike."""
    without_choice: int
    """Kinds that ran at once where nothing else was to be weighed: of these none is shown."""
    timed: tuple[DecisionRecord, ...]
    """The first of all, without what they weighed."""


class Sampler:
    """Hears decisions one by one; memory grows with the kinds of decision, not with their number."""

    def __init__(self) -> None:
        self._total = 0
        self._last: dict[_Kind, DecisionRecord] = {}
        self._counts: dict[_Kind, int] = {}
        self._timed: list[DecisionRecord] = []

    def hears(self, decisions: Iterable[DecisionRecord]) -> Iterator[DecisionRecord]:
        """The decisions, each once it is heard."""
        for decision in decisions:
            self._total += 1
            if self._total <= MOST_TIMED:
                self._timed.append(_lean(decision))
            kind = (decision.key.task, decision.action, decision.pool, decision.mode, decision.enforced)
            self._counts[kind] = self._counts.get(kind, 0) + 1
            if kind in self._last or len(self._last) < _MOST_KEPT:
                self._last[kind] = decision
            yield decision

    def samples(self) -> Samples:
        """What is shown of those heard so far."""
        counts, last = self._counts, self._last
        ranked = sorted(last, key=lambda kind: (kind[1] == "run", -counts[kind], kind))
        shown: list[tuple[str, Explained]] = []
        without_choice = 0
        for kind in ranked:
            (made,) = explain([last[kind]])
            if made.action == "run" and len(made.candidates) < 2:
                without_choice += 1
            elif len(shown) < MOST_KINDS:
                shown.append((kind[0] or "the whole run", replace(made, count=counts[kind])))
        return Samples(self._total, len(counts), tuple(shown), without_choice, tuple(self._timed))


_MOST_KEPT: Final = 500
"""Kinds of which the last decision is held while all are read."""


def _lean(decision: DecisionRecord) -> DecisionRecord:
    task: Any = decision.request.get("task")
    kept = {name: task[name] for name in ("ready_at", "home_pool") if name in task} if isinstance(task, Mapping) else {}
    answer = {name: decision.answer[name] for name in ("latest_start",) if name in decision.answer}
    return replace(decision, request={"task": kept}, answer=answer)
