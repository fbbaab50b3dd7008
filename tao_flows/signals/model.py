"""What a signal says: values that each hold until the next begins, and forecasts of them as they were issued."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from tao_flows.errors import InputError

Signal = Literal["carbon_g_per_kwh", "price_per_kwh"]
"""Grams of CO2 equivalent a kWh, or a currency a kWh: the names the decision request has."""
Kind = Literal["average", "marginal"]
"""Of a carbon intensity: the mean over all that generates, or what one more kWh would cause."""
Steps = tuple[tuple[int, float], ...]
"""Start, in nanoseconds since the epoch, and value; each value holds until the next start."""

CARBON: Final = "carbon_g_per_kwh"
PRICE: Final = "price_per_kwh"
SIGNALS: Final[tuple[Signal, ...]] = (CARBON, PRICE)
LARGEST: Final = 1e9
"""No grid's carbon intensity or price comes near, in any unit that is read here."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One forecast, as it was issued."""

    issued_wall_ns: int
    steps: Steps
    """In order of time; what lies before the first start is not forecast."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The latest that is known of a signal in a zone."""

    issue: Issue
    end_wall_ns: int | None = None
    """Where the last step of the issue ends; None: it holds without end."""
    actuals: Steps = ()
    """What came true of late; the last one holds until the issue's first start."""

    def steps_from(self, now_wall_ns: int) -> tuple[tuple[int, float | None], ...]:
        """What is known from the present on: begins with the step that holds now, ends with an unknown one.

        Empty where neither the present nor anything after it is known.
        """
        steps = self.issue.steps
        merged: list[tuple[int, float | None]] = [
            *(step for step in self.actuals if not steps or step[0] < steps[0][0]),
            *steps,
        ]
        if self.end_wall_ns is not None:
            merged.append((self.end_wall_ns, None))
        began = [index for index, (start, _) in enumerate(merged) if start <= now_wall_ns]
        rest = merged[began[-1] if began else 0 :]
        return tuple(rest) if any(value is not None for _, value in rest) else ()


def check_value(value: object, signal: Signal | None = None) -> float:
    """A value of a signal: a finite number, and for carbon none below 0.

    Raises:
        InputError: BAD_SIGNAL_VALUE.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(f"{_shown(value)} is not a number")
    if not abs(value) < math.inf:
        raise _bad(f"{_shown(value)} is not finite")
    if abs(value) > LARGEST:
        raise _bad(f"{_shown(value)} is beyond {LARGEST:g}")
    if signal == CARBON and value < 0:
        raise _bad(f"{_shown(value)} is a negative carbon intensity")
    return float(value)


def check_order(starts: tuple[int, ...]) -> None:
    """Refuses starts that do not rise.

    Raises:
        InputError: BAD_SIGNAL_ORDER: a step comes twice, or before the one it follows.
    """
    for before, after in pairwise(starts):
        if after <= before:
            problem = "a step is there twice" if after == before else "steps are out of order"
            raise InputError("BAD_SIGNAL_ORDER", problem, "give each start once, in order of time")


def typical_length_ns(starts: tuple[int, ...]) -> int | None:
    """How long the last step lasts, which nothing follows: as long as the one before it; None for a single step."""
    return starts[-1] - starts[-2] if len(starts) > 1 else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bad(summary: str) -> InputError:
    return InputError("BAD_SIGNAL_VALUE", summary, "give a finite number in the unit named; carbon is never below 0")
