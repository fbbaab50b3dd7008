"""What decisions read: every configured signal, as far as it is known now. Never waits for a provider for long."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from tao_flows.clock import Clock, SystemClock, iso_from_ns
from tao_flows.errors import SourceError
from tao_flows.signals.background import Background
from tao_flows.signals.feeds import Feed, Known, build_feed
from tao_flows.signals.keys import KeySource
from tao_flows.signals.learning import AT_ITS_WORD, Learning, Lesson
from tao_flows.signals.model import Issue, Signal, Steps
from tao_flows.signals.providers import CLOCK_SKEW_NS
from tao_flows.signals.spec import SignalSpec
from tao_flows.signals.store import ForecastStore
from tao_flows.units import NS_PER_S, format_duration, s_from_ns

MOST_STEPS: Final = 1_000
"""Of one zone in a request: three days of five minutes."""
_Rows = tuple[tuple[int, float | None], ...]


@dataclass(frozen=True, slots=True)
class BoardReading:
    """The signals' part of a decision request."""

    signals: Mapping[str, Mapping[str, list[dict[str, Any]]]]
    """``signals`` in the form of the CLI contract; a zone that is not known is left out."""
    meta: Mapping[str, Any] | None
    """``signal_meta`` in that form; None where nothing is known. Its margin is null where none has been learned."""
    follow: bool | None
    """Whether following the forecasts has paid of late, in every zone read; None: nobody waits, or nothing is known."""
    problems: tuple[SourceError, ...] = ()


@dataclass(frozen=True, slots=True)
class Past:
    """What is kept of a signal, for looking back."""

    spec: SignalSpec
    issues: tuple[Issue, ...]
    """Forecasts as they were issued."""
    actuals: Steps
    """What came true, as far as it was told."""
    fixed: float | None = None
    """The figure in the settings, where the signal is one."""

    @property
    def source(self) -> str:
        """Who told it: ``electricitymaps, average``."""
        return f"{self.spec.provider}, {self.spec.kind}" if self.spec.kind else self.spec.provider


@dataclass(frozen=True, slots=True)
class SignalStatus:
    """One configured signal, for people."""

    spec: SignalSpec
    value: float | None
    """Now, in ``spec.read_as``."""
    issued_wall_ns: int | None
    asked_wall_ns: int | None
    age_s: float | None
    is_stale: bool
    horizon_s: float | None
    """From now to the end of what is known; None: nothing is, or it has no end."""
    lesson: Lesson | None
    problems: tuple[SourceError, ...]

    def to_json(self) -> dict[str, Any]:
        """The form ``tao-flows signals --json`` gives."""
        return {
            "signal": self.spec.signal,
            "zone": self.spec.zone,
            "provider": self.spec.provider,
            "area": self.spec.area,
            "kind": self.spec.kind,
            "unit": self.spec.read_as,
            "value": self.value,
            "issued_at": iso_from_ns(self.issued_wall_ns),
            "asked_at": iso_from_ns(self.asked_wall_ns),
            "age_s": self.age_s,
            "max_age_s": self.spec.max_age_s,
            "stale": self.is_stale,
            "horizon_s": self.horizon_s,
            "margin": None if self.lesson is None else self.lesson.to_json(),
            "problems": [{"code": p.code, "summary": p.summary, "remedy": p.remedy} for p in self.problems],
        }


class SignalBoard:
    """Reads the signals of many feeds.

    Args:
        feeds: one for each signal and zone.
        clock: where time comes from.
        cache_dir: where the processes of this host share what they have learned.
    """

    def __init__(self, feeds: Iterable[Feed], clock: Clock, cache_dir: Path | None = None) -> None:
        self._feeds = tuple(feeds)
        self._background = Background()
        self._learning = Learning(self._background, clock, cache_dir)
        self._written: dict[str, tuple[Known, Steps, _Rows, list[dict[str, Any]]]] = {}
        self._cut: dict[str, tuple[list[dict[str, Any]], int, list[dict[str, Any]]]] = {}

    @classmethod
    def build(
        cls,
        specs: Mapping[str, SignalSpec],
        store: ForecastStore | None = None,
        cache_dir: Path | None = None,
        clock: Clock | None = None,
        *,
        keys: KeySource | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> SignalBoard:
        """A board of the configured signals. Nothing is read or asked before the first `read`.

        Args:
            specs: the setting ``signals``.
            store: where forecasts are kept as issued; None: no margin is learned from what providers told.
            cache_dir: where the processes of this host share what they were told; None: each asks for itself.
            clock: where time comes from.
            keys: where keys are kept besides variables and files, such as an engine's connections.
            env: the environment that keys are looked for in.
        """
        clock = clock or SystemClock()
        return cls((build_feed(spec, store, cache_dir, clock, keys, env) for spec in specs.values()), clock, cache_dir)

    @property
    def configured(self) -> frozenset[str]:
        """The signals there are settings for, in any zone, by their names in a request."""
        return frozenset(feed.spec.signal for feed in self._feeds)

    def read(
        self,
        zones: Collection[str],
        now_wall_ns: int,
        wait_s: float = 1.0,
        *,
        slack_s: float = 0.0,
        runtime_s: float = 0.0,
    ) -> BoardReading:
        """What is known of the signals of some zones. Never raises.

        A refresh that is due begins in the background. It is waited for, ``wait_s`` at most since it began, only where
        nothing usable is known yet. Static figures and files need no thread.

        Args:
            zones: as pools name them.
            now_wall_ns: the present, nanoseconds since the epoch.
            wait_s: the longest this takes on account of providers.
            slack_s: how long the work could wait; 0: no margin is looked up.
            runtime_s: how long it is expected to run.
        """
        give_up_s = time.monotonic() + wait_s
        feeds = [feed for feed in self._feeds if feed.spec.zone in zones]
        problems = self._refresh(feeds, now_wall_ns, wait_s)
        used: list[tuple[Feed, Known]] = []
        for feed in feeds:
            known = feed.look(now_wall_ns)
            problems += known.problems
            unusable = _why_unusable(feed.spec, known, now_wall_ns)
            if unusable is None:
                used.append((feed, known))
            elif not known.problems:
                problems.append(unusable)
        lessons: list[Lesson | None] = [AT_ITS_WORD] * len(used)
        if slack_s > 0 and used:
            left_s = max(0.0, give_up_s - time.monotonic())
            lessons = self._learning.of([feed for feed, _ in used], now_wall_ns, slack_s, runtime_s, left_s)
            problems += [] if self._learning.problem is None else [self._learning.problem]
        signals: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for (feed, known), lesson in zip(used, lessons, strict=True):
            expected = () if lesson is None else lesson.expected
            signals.setdefault(feed.spec.signal, {})[feed.spec.zone] = self._steps(feed, known, expected, now_wall_ns)
        return BoardReading(
            signals,
            _meta(used, now_wall_ns, lessons),
            all(lesson is not None and lesson.follow for lesson in lessons) if used and slack_s > 0 else None,
            tuple(problems),
        )

    def marks(self, now_wall_ns: int) -> tuple[object, ...]:
        """What differs from the marks before where a signal was told anew, was lost or has become stale. Never raises.

        It costs next to nothing; a refresh that is due begins in the background.
        """
        self._refresh(list(self._feeds), now_wall_ns, wait_s=0.0)
        known = [(feed.spec, feed.look(now_wall_ns)) for feed in self._feeds]
        lost = [_why_unusable(spec, each, now_wall_ns) for spec, each in known]
        return (*(each.forecast for _, each in known), *(None if each is None else each.code for each in lost))

    def past(self, signal: Signal, zones: Collection[str], since_wall_ns: int) -> dict[str, Past]:
        """What is kept of a signal by zone, of those that are configured. Asks no provider.

        Raises:
            LedgerError: the ledger that keeps it cannot be read.
        """
        found = {}
        for feed in self._feeds:
            spec = feed.spec
            if spec.signal == signal and spec.zone in zones:
                feed.look(since_wall_ns)  # which reads a file
                issues, actuals = feed.history(since_wall_ns)
                fixed = None if spec.value is None else spec.value * spec.factor
                found[spec.zone] = Past(spec, issues, actuals, fixed)
        return found

    def fetch(self, timeout_s: float = 30.0) -> None:
        """Asks every provider now, due or not, and waits for the answers, ``timeout_s`` at most. Never raises."""
        for feed in self._feeds:
            self._begin(feed.name, partial(feed.refresh, force=True))
        self._background.wait([feed.name for feed in self._feeds], timeout_s)

    def status(
        self, now_wall_ns: int, wait_s: float = 1.0, *, slack_s: float = 0.0, runtime_s: float = 0.0
    ) -> list[SignalStatus]:
        """Every configured signal, in the order of the settings; arguments are those of `read`."""
        give_up_s = time.monotonic() + wait_s
        started = self._refresh(list(self._feeds), now_wall_ns, wait_s)
        return [
            self._status(feed, now_wall_ns, slack_s, runtime_s, max(0.0, give_up_s - time.monotonic()), started)
            for feed in self._feeds
        ]

    def _status(
        self, feed: Feed, now_wall_ns: int, slack_s: float, runtime_s: float, left_s: float, others: list[SourceError]
    ) -> SignalStatus:
        known = feed.look(now_wall_ns)
        unusable = _why_unusable(feed.spec, known, now_wall_ns)
        rows = known.rows
        last = bisect_right(rows, now_wall_ns, key=_start) - 1
        ends = rows[-1][0] if rows and rows[-1][1] is None else None
        lesson = None
        if unusable is None and slack_s > 0:
            (lesson,) = self._learning.of([feed], now_wall_ns, slack_s, runtime_s, left_s)
            others = [*others, *([] if self._learning.problem is None else [self._learning.problem])]
        problems = (*known.problems, *others)
        return SignalStatus(
            spec=feed.spec,
            value=rows[last][1] if last >= 0 and unusable is None else None,
            issued_wall_ns=known.issued_wall_ns,
            asked_wall_ns=known.asked_wall_ns,
            age_s=None if known.issued_wall_ns is None else s_from_ns(now_wall_ns - known.issued_wall_ns),
            is_stale=unusable is not None and unusable.code == "SIGNAL_STALE",
            horizon_s=None if ends is None else max(0.0, s_from_ns(ends - now_wall_ns)),
            lesson=lesson,
            problems=problems if unusable is None or problems else (unusable,),
        )

    def _refresh(self, feeds: list[Feed], now_wall_ns: int, wait_s: float) -> list[SourceError]:
        problems: list[SourceError] = []
        awaited = []
        for feed in feeds:
            known = feed.look(now_wall_ns)
            key = feed.name
            if feed.due(now_wall_ns):
                problems += self._begin(key, feed.refresh)
            if _why_unusable(feed.spec, known, now_wall_ns) is not None:
                awaited.append(key)
        self._background.wait(awaited, wait_s)
        return problems

    def _begin(self, key: str, refresh: Callable[[], None]) -> list[SourceError]:
        try:
            self._background.start(key, refresh)
        except RuntimeError as error:
            remedy = "see how many threads this process may have"
            return [SourceError("SIGNAL_NO_THREAD", f"{key}: {error}", remedy)]
        return []

    def _steps(self, feed: Feed, known: Known, expected: Steps, now_wall_ns: int) -> list[dict[str, Any]]:
        # A forecast is written out once, not for each of the tasks that are decided under it.
        kept = self._written.get(feed.name)
        if kept is None or kept[0] is not known or kept[1] is not expected:
            rows = _replaced(known.rows, expected)
            kept = (known, expected, rows, [{"start": iso_from_ns(start), "value": value} for start, value in rows])
            self._written[feed.name] = kept
        first = max(0, bisect_right(kept[2], now_wall_ns, key=_start) - 1)
        # The very same list until a step has passed: what was read of it need not be read again.
        cut = self._cut.get(feed.name)
        if cut is None or cut[0] is not kept[3] or cut[1] != first:
            cut = self._cut[feed.name] = (kept[3], first, kept[3][first : first + MOST_STEPS])
        return cut[2]


def _start(row: tuple[int, float | None]) -> int:
    return row[0]


def _replaced(rows: _Rows, expected: Steps) -> _Rows:
    """What is known, with the corrected forecast in place of the plain one as far as it reaches."""
    if len(expected) < 2:
        return rows
    begin, end = expected[0][0], 2 * expected[-1][0] - expected[-2][0]
    last = bisect_right(rows, end, key=_start) - 1
    holds_on = ((end, rows[last][1]),) if last >= 0 else ()
    return (
        *(row for row in rows if row[0] < begin),
        *expected,
        *holds_on,
        *(row for row in rows if row[0] > end),
    )


def _why_unusable(spec: SignalSpec, known: Known, now_wall_ns: int) -> SourceError | None:
    if known.forecast is None:
        return SourceError("SIGNAL_UNKNOWN", f"{spec.name}: {spec.provider} has not told it yet", "wait")
    issued = known.issued_wall_ns
    if issued is not None:
        age_s, at = s_from_ns(now_wall_ns - issued), iso_from_ns(issued)
        if age_s < -s_from_ns(CLOCK_SKEW_NS):
            # The time of issue and not the age: what is the same is said the same, and counted as one.
            return SourceError("SIGNAL_CLOCK", f"{spec.name}: issued in the future, at {at}", "set the clock")
        if spec.max_age_s is not None and age_s > spec.max_age_s:
            summary = f"{spec.name}: issued at {at}, and max_age is "
            remedy = "see why it is not renewed, or raise max_age"
            return SourceError("SIGNAL_STALE", summary + format_duration(spec.max_age_s), remedy)
    first = max(0, bisect_right(known.rows, now_wall_ns, key=_start) - 1)
    if all(value is None for _, value in known.rows[first:]):
        return SourceError(
            "SIGNAL_ENDED", f"{spec.name}: the forecast has ended", "renew the file, or see its provider"
        )
    return None


def _meta(used: list[tuple[Feed, Known]], now_wall_ns: int, lessons: Sequence[Lesson | None]) -> dict[str, Any] | None:
    if not used:
        return None
    margins = [lesson.margin for lesson in lessons if lesson is not None]
    aged = [
        (min(known.issued_wall_ns, now_wall_ns), feed.spec.max_age_s)
        for feed, known in used
        if known.issued_wall_ns is not None
    ]
    issued = min((at for at, _ in aged), default=now_wall_ns)
    # As a whole they are stale when the first of them is.
    ends = min((at + round(max_age_s * NS_PER_S) for at, max_age_s in aged if max_age_s is not None), default=None)
    return {
        "issued_at": iso_from_ns(issued),
        "max_age_s": None if ends is None else s_from_ns(ends - issued),
        "margin": max(margins) if len(margins) == len(lessons) else None,
    }
