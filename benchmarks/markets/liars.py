"""Signals whose forecasts carry nothing, or lie on purpose, and what following them costs.

A liar sees whether it is trusted before it issues a forecast. What it could do at most is the harm that trusting
forecasts can do, however carefully they are watched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tao_flows.signals.model import Issue
from tao_flows.signals.trailing import WINDOW_DAYS, Margin, Trail
from tao_flows.units import NS_PER_S, S_PER_H

DAYS = 180
SLACK_H, RUNTIME_H, LEADS = 6, 2, 12
LOWEST, HIGHEST = 20.0, 100.0
_HOUR_NS = S_PER_H * NS_PER_S
_FIRST = 20_000 * 24
"""Hours since the epoch, at midnight."""


def _honest(truth: Sequence[float], _draw: random.Random, _trusted: bool) -> list[float]:
    return list(truth)


def _mirrored(truth: Sequence[float], _draw: random.Random, _trusted: bool) -> list[float]:
    return [LOWEST + HIGHEST - value for value in truth]


def _random(truth: Sequence[float], draw: random.Random, _trusted: bool) -> list[float]:
    return [draw.uniform(LOWEST, HIGHEST) for _ in truth]


def _liar(truth: Sequence[float], draw: random.Random, trusted: bool) -> list[float]:
    return (_mirrored if trusted else _honest)(truth, draw, trusted)


FORECASTS: dict[str, Callable[[Sequence[float], random.Random, bool], list[float]]] = {
    "true": _honest,
    "random": _random,
    "mirrored": _mirrored,
    "mirrored while trusted": _liar,
}


def _white(draw: random.Random, hours: int) -> list[float]:
    return [draw.uniform(LOWEST, HIGHEST) for _ in range(hours)]


def _walk(draw: random.Random, hours: int) -> list[float]:
    value, values = (LOWEST + HIGHEST) / 2, []
    for _ in range(hours):
        value = min(max(value + draw.gauss(0.0, 2.0), LOWEST), HIGHEST)
        values.append(value)
    return values


def _constant(_draw: random.Random, hours: int) -> list[float]:
    return [(LOWEST + HIGHEST) / 2] * hours


SIGNALS: dict[str, Callable[[random.Random, int], list[float]]] = {
    "white noise": _white,
    "random walk": _walk,
    "constant": _constant,
}


def against(signal: str, forecasts: str, seed: int) -> dict[str, Any]:
    """Cost of `tao` and of following the forecasts at their word, relative to running at once.

    A job of two hours that can wait for six arrives every hour. ``worst`` is the worst span as long as the trailing
    window; ``waited`` the share of jobs that were put off after the first such span.
    """
    draw = random.Random(seed)
    hours = DAYS * 24
    values = SIGNALS[signal](draw, hours + SLACK_H + RUNTIME_H + LEADS)
    lie = FORECASTS[forecasts]
    trail = Trail(_HOUR_NS, (SLACK_H + RUNTIME_H) * S_PER_H)
    waiting: dict[str, list[int]] = {"tao": [], "forecast": []}
    paid: dict[str, dict[int, float]] = {"tao": {}, "forecast": {}}
    starts: dict[int, int] = {}
    margin = trail.margin(0.0, 0.0)
    for hour in range(hours):
        at_ns = (_FIRST + hour) * _HOUR_NS
        ahead = lie(values[hour + 1 : hour + 1 + LEADS], draw, margin.follow)
        steps = tuple((at_ns + lead * _HOUR_NS, value) for lead, value in enumerate(ahead, 1))
        trail.add((Issue(at_ns, steps),), ((at_ns, values[hour]),))
        trail.advance(at_ns)
        margin = trail.margin(SLACK_H * S_PER_H, RUNTIME_H * S_PER_H)
        views = {"tao": trail.forecast(corrected=margin.corrected), "forecast": trail.forecast(corrected=False)}
        for name, queue in waiting.items():
            queue.append(hour)
            means = _means([value for _, value in views[name]])
            trusted = margin if name == "tao" else None
            for arrival in list(queue):
                if not _waits(means, SLACK_H - (hour - arrival), trusted):
                    queue.remove(arrival)
                    paid[name][arrival] = sum(values[hour : hour + RUNTIME_H])
                    if name == "tao":
                        starts[arrival] = hour
    done = [arrival for arrival in range(hours - SLACK_H) if arrival in paid["tao"] and arrival in paid["forecast"]]
    at_once = [sum(values[arrival : arrival + RUNTIME_H]) for arrival in done]
    late = [arrival for arrival in done if arrival >= WINDOW_DAYS * 24]
    return {
        "signal": signal,
        "forecasts": forecasts,
        "tao": sum(paid["tao"][arrival] for arrival in done) / sum(at_once),
        "forecast": sum(paid["forecast"][arrival] for arrival in done) / sum(at_once),
        "worst": _worst([paid["tao"][arrival] for arrival in done], at_once),
        "waited": sum(starts[arrival] > arrival for arrival in late) / len(late),
    }


def _means(values: Sequence[float]) -> list[float]:
    return [sum(values[at : at + RUNTIME_H]) for at in range(len(values) - RUNTIME_H + 1)]


def _waits(means: Sequence[float], left: int, margin: Margin | None) -> bool:
    if left == 0 or (margin is not None and not margin.follow):
        return False
    later = min(means[1 : left + 1])
    return later + (0.0 if margin is None else margin.margin) * abs(later) < means[0]


def _worst(paid: Sequence[float], at_once: Sequence[float]) -> float:
    span = WINDOW_DAYS * 24
    return max(
        sum(paid[first : first + span]) / sum(at_once[first : first + span])
        for first in range(0, len(paid) - span + 1, 24)
    )
