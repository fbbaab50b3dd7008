"""Signals whose forecasts carry nothing, or lie on purpose, and what following them costs.

A liar sees whether it is trusted before it issues a forecast, and the worst of them also sets the values. A job of two
hours that can wait for six arrives every hour.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tao_flows.signals.model import Issue
from tao_flows.signals.trailing import WINDOW_DAYS, Margin, Trail
from tao_flows.units import NS_PER_S, S_PER_H

DAYS = 120
SLACK_H, RUNTIME_H, LEADS = 6, 2, 12
LOWEST, HIGHEST = 20.0, 100.0
_HOUR_NS = S_PER_H * NS_PER_S
_FIRST = 20_000 * 24
"""Hours since the epoch, at midnight."""
World = Callable[[int, bool], tuple[float, Sequence[float]]]
"""The hour, and whether the forecasts are trusted, to the value now and those that are forecast."""


def worlds(seed: int) -> dict[str, World]:
    """By name; each kind of signal with each kind of forecast."""
    hours = DAYS * 24 + LEADS + 1
    signals = {
        "white noise": _white(random.Random(seed), hours),
        "random walk": _walk(random.Random(seed), hours),
        "constant": [(LOWEST + HIGHEST) / 2] * hours,
    }
    found: dict[str, World] = {}
    for signal, values in signals.items():
        for name, lie in _forecasts(random.Random(seed)).items():
            found[f"{signal}, {name}"] = _told(values, lie)
    found["falls while distrusted, rises while trusted, always said to fall"] = _bait(random.Random(seed))
    return found


def _white(draw: random.Random, hours: int) -> list[float]:
    return [draw.uniform(LOWEST, HIGHEST) for _ in range(hours)]


def _walk(draw: random.Random, hours: int) -> list[float]:
    value, values = (LOWEST + HIGHEST) / 2, []
    for _ in range(hours):
        value = min(max(value + draw.gauss(0.0, 2.0), LOWEST), HIGHEST)
        values.append(value)
    return values


def _forecasts(draw: random.Random) -> dict[str, Callable[[Sequence[float], bool], Sequence[float]]]:
    def mirrored(truth: Sequence[float], _trusted: bool) -> Sequence[float]:
        return [LOWEST + HIGHEST - value for value in truth]

    return {
        "true forecasts": lambda truth, _trusted: truth,
        "random forecasts": lambda truth, _trusted: [draw.uniform(LOWEST, HIGHEST) for _ in truth],
        "mirrored forecasts": mirrored,
        "mirrored while trusted": lambda truth, trusted: mirrored(truth, trusted) if trusted else truth,
    }


def _told(values: Sequence[float], lie: Callable[[Sequence[float], bool], Sequence[float]]) -> World:
    return lambda hour, trusted: (values[hour], lie(values[hour + 1 : hour + 1 + LEADS], trusted))


def _bait(draw: random.Random) -> World:
    period = SLACK_H + RUNTIME_H

    def falling(hour: int) -> float:
        return HIGHEST - (HIGHEST - LOWEST) * (hour % period) / (period - 1)

    def world(hour: int, trusted: bool) -> tuple[float, Sequence[float]]:
        value = LOWEST + HIGHEST - falling(hour) if trusted else falling(hour)
        return value + draw.uniform(-1.0, 1.0), [falling(hour + lead) for lead in range(1, LEADS + 1)]

    return world


def against(world: World) -> dict[str, Any]:
    """Cost of `tao` and of following the forecasts at their word, relative to running at once.

    ``worst`` is the worst span as long as the trailing window; ``waited`` the share of jobs that were put off once the
    first such span was over.
    """
    trail = Trail(_HOUR_NS, (SLACK_H + RUNTIME_H) * S_PER_H)
    margin = trail.margin(0.0, 0.0)
    values: list[float] = []
    waiting: dict[str, list[int]] = {"tao": [], "forecast": []}
    starts: dict[str, dict[int, int]] = {"tao": {}, "forecast": {}}
    for hour in range(DAYS * 24):
        at_ns = (_FIRST + hour) * _HOUR_NS
        value, ahead = world(hour, margin.follow)
        values.append(value)
        issue = Issue(at_ns, tuple((at_ns + lead * _HOUR_NS, one) for lead, one in enumerate(ahead, 1)))
        trail.add((issue,), ((at_ns, value),))
        trail.advance(at_ns)
        margin = trail.margin(SLACK_H * S_PER_H, RUNTIME_H * S_PER_H)
        for name, rule in {"tao": margin, "forecast": None}.items():
            costs = _costs([one for _, one in trail.forecast(corrected=rule is not None and rule.corrected)])
            waiting[name].append(hour)
            for arrival in list(waiting[name]):
                if not _waits(costs, SLACK_H - (hour - arrival), rule):
                    waiting[name].remove(arrival)
                    starts[name][arrival] = hour
    paid = _costs(values)
    done = range(len(paid) - SLACK_H)
    at_once = [paid[arrival] for arrival in done]
    late = done[WINDOW_DAYS * 24 :]
    mine = [paid[starts["tao"][arrival]] for arrival in done]
    return {
        "tao": sum(mine) / sum(at_once),
        "forecast": sum(paid[starts["forecast"][arrival]] for arrival in done) / sum(at_once),
        "worst": _worst(mine, at_once),
        "waited": sum(starts["tao"][arrival] > arrival for arrival in late) / len(late),
    }


def _costs(values: Sequence[float]) -> list[float]:
    return [sum(values[at : at + RUNTIME_H]) for at in range(len(values) - RUNTIME_H + 1)]


def _waits(costs: Sequence[float], left: int, margin: Margin | None) -> bool:
    if left == 0 or (margin is not None and not margin.follow):
        return False
    later = min(costs[1 : left + 1])
    return later + (0.0 if margin is None else margin.margin) * abs(later) < costs[0]


def _worst(paid: Sequence[float], at_once: Sequence[float]) -> float:
    span = WINDOW_DAYS * 24
    firsts = range(0, len(paid) - span + 1, 24)
    return max(sum(paid[first : first + span]) / sum(at_once[first : first + span]) for first in firsts)
