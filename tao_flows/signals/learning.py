"""How far to follow each signal's forecasts, learned from its own past ones: in the background, once a host."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tao_flows.clock import Clock
from tao_flows.errors import InputError, LedgerError, SourceError
from tao_flows.signals.background import Background
from tao_flows.signals.cache import SharedFile, file_name
from tao_flows.signals.feeds import Feed
from tao_flows.signals.model import CARBON, Steps, check_value
from tao_flows.signals.times import check_ns
from tao_flows.signals.trailing import NO_TRUST, Trail, alike_s, step_of
from tao_flows.units import S_PER_H, s_from_ns

KEEP_S: Final = 600.0
"""A lesson is drawn anew at most this often."""
SCHEMA: Final = "tao-flows/signal-lesson/1"
_HORIZONS_S: Final = (4.0 * S_PER_H, 26.0 * S_PER_H, 74.0 * S_PER_H, 170.0 * S_PER_H)
"""Slack and runtime together, rounded up to one of these: alike tasks share what is expensive to learn."""
_MOST_LESSONS: Final = 512
_MOST_TRAILS: Final = 8
_Key = tuple[str, float, float]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the past says of following the forecasts."""

    margin: float
    """What a later start must promise to save to be worth it, a share."""
    follow: bool
    """Whether following them has paid."""
    corrected: bool
    """Whether it paid more with what they usually get wrong put right."""
    replayed: int
    """How many past decisions this rests on."""
    share: float | None
    """The part of the best possible saving that following them would have had; None: unknown."""
    expected: Steps = ()
    """The corrected forecast, where that is the one to follow."""

    def to_json(self) -> dict[str, Any]:
        """What was learned, in plain types."""
        document = asdict(self)
        del document["expected"]
        return document


AT_ITS_WORD: Final = Lesson(margin=0.0, follow=True, corrected=False, replayed=0, share=None)
"""For figures and published schedules, which forecast nothing."""


@dataclass
class _Trailed:
    """What was taken in of one signal, so that only what is new is read the next time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    trail: Trail | None = None
    last_issue_ns: int = -1
    last_value_ns: int = -1


class Learning:
    """Lessons by signal, slack and runtime; the latter two are rounded, so that alike tasks share one.

    Args:
        background: runs what takes long.
        clock: where time comes from.
        directory: where the processes of this host share lessons; None: each draws its own.
    """

    def __init__(self, background: Background, clock: Clock, directory: Path | None) -> None:
        self._background, self._clock, self._directory = background, clock, directory
        self._kept: dict[_Key, tuple[int, Lesson]] = {}
        self._trails: dict[tuple[int, str, float], _Trailed] = {}
        self.problem: SourceError | None = None
        """Why the last lesson could not be drawn."""

    def of(
        self, feeds: Sequence[Feed], now_wall_ns: int, slack_s: float, runtime_s: float, wait_s: float
    ) -> list[Lesson | None]:
        """The lesson of each signal; None where it is not drawn yet.

        One that is due is drawn in the background; it is waited for, ``wait_s`` at most, where there is none yet.
        """
        keys = [(feed.name, alike_s(slack_s), alike_s(runtime_s)) for feed in feeds]
        awaited = []
        for key, feed in zip(keys, feeds, strict=True):
            kept = self._kept.get(key)
            if feed.forecasts and (kept is None or not self._is_fresh(kept[0], now_wall_ns)):
                with suppress(RuntimeError):  # no thread: the last lesson stands, if there is one
                    self._background.start(key, partial(self._draw, key, feed, now_wall_ns))
                awaited += [key] if kept is None else []
        self._background.wait(awaited, wait_s)
        lessons: list[Lesson | None] = []
        for key, feed in zip(keys, feeds, strict=True):
            kept = self._kept.get(key)
            lessons.append(AT_ITS_WORD if not feed.forecasts else None if kept is None else kept[1])
        return lessons

    def _is_fresh(self, drawn_wall_ns: int, now_wall_ns: int) -> bool:
        return abs(s_from_ns(now_wall_ns - drawn_wall_ns)) <= KEEP_S

    def _draw(self, key: _Key, feed: Feed, now_wall_ns: int) -> None:
        shared = None
        if self._directory is not None:
            shared = SharedFile(self._directory / file_name(feed.spec, "lesson", f"{key[1]:g}", f"{key[2]:g}"))
        try:
            with nullcontext(False) if shared is None else shared.turn() as is_ours:
                drawn = None if shared is None else _decode(shared.read(), feed)
                if drawn is None or not self._is_fresh(drawn[0], now_wall_ns):
                    drawn = (now_wall_ns, self._lesson(key, feed, now_wall_ns))
                    if shared is not None and is_ours:
                        with suppress(OSError):  # told already by what was fetched and could not be kept
                            shared.write(_encode(*drawn))
        except LedgerError as error:
            self.problem = SourceError(error.code, f"{feed.spec.name}: no margin: {error.summary}", error.remedy)
            return
        except Exception as error:  # noqa: BLE001 - the last lesson stands, and work goes on without one
            summary = f"{feed.spec.name}: no margin: {type(error).__name__}: {error}"
            self.problem = SourceError("SIGNAL_FAILED", summary, "report this, please")
            return
        self.problem = None
        if len(self._kept) >= _MOST_LESSONS:
            self._kept.clear()
        self._kept[key] = drawn

    def _lesson(self, key: _Key, feed: Feed, now_wall_ns: int) -> Lesson:
        name, slack_s, runtime_s = key
        horizon_s = next((one for one in _HORIZONS_S if one >= slack_s + runtime_s), _HORIZONS_S[-1])
        if len(self._trails) >= _MOST_TRAILS:
            self._trails.clear()
        # By process: a lock that was held when this one was forked is never let go.
        trailed = self._trails.setdefault((os.getpid(), name, horizon_s), _Trailed())
        with trailed.lock:
            trail = _brought_up(trailed, feed, horizon_s, now_wall_ns)
            drawn = NO_TRUST if trail is None else trail.margin(slack_s, runtime_s)
            expected = () if trail is None or not drawn.corrected else trail.forecast(corrected=True)
        least = 0.0 if feed.spec.signal == CARBON else -math.inf
        steps = tuple((start, max(least, value)) for start, value in expected)
        return Lesson(drawn.margin, drawn.follow, drawn.corrected, drawn.replayed, drawn.share, steps)


def _brought_up(trailed: _Trailed, feed: Feed, horizon_s: float, now_wall_ns: int) -> Trail | None:
    """The trail with all that is known by now; None until there is something to learn from."""
    issues, values = feed.history(min(trailed.last_issue_ns, trailed.last_value_ns) + 1)
    issues = tuple(issue for issue in issues if trailed.last_issue_ns < issue.issued_wall_ns <= now_wall_ns)
    values = tuple(step for step in values if trailed.last_value_ns < step[0] <= now_wall_ns)
    if trailed.trail is None:
        if not issues or len(values) < 2:
            return None
        trailed.trail = Trail(step_of(issues, values), horizon_s)
    trailed.trail.add(issues, values)
    trailed.last_issue_ns = issues[-1].issued_wall_ns if issues else trailed.last_issue_ns
    trailed.last_value_ns = values[-1][0] if values else trailed.last_value_ns
    trailed.trail.advance(now_wall_ns)
    return trailed.trail


def _encode(drawn_wall_ns: int, lesson: Lesson) -> dict[str, Any]:
    return {"schema": SCHEMA, "drawn_wall_ns": drawn_wall_ns, **asdict(lesson)}


def _decode(document: Any, feed: Feed) -> tuple[int, Lesson] | None:
    try:
        if document["schema"] != SCHEMA:
            return None
        expected = tuple(
            (check_ns(start), check_value(value, feed.spec.signal)) for start, value in document["expected"]
        )
        share = document["share"]
        return check_ns(document["drawn_wall_ns"]), Lesson(
            float(document["margin"]),
            document["follow"] is True,
            document["corrected"] is True,
            int(document["replayed"]),
            None if share is None else float(share),
            expected,
        )
    except (TypeError, KeyError, ValueError, InputError):
        return None
