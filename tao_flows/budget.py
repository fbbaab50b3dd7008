"""Energy budgets: joules that tasks may use together, in a window, within a scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tao_flows.errors import InputError
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import parse_duration_s, parse_energy_j

Calendar = Literal["hour", "day", "week", "month"]
DAY_S: Final = 86_400.0
_KEYS: Final = ("limit", "window", "ceiling", "timezone", "scope", "power")


@dataclass(frozen=True, slots=True)
class EnergyBudget:
    """Joules that tasks may use together in a window.

    Args:
        name: what tasks call it by.
        limit_j: B of the penalty, in joules; above 0.
        window_s: the length of a rolling window, in seconds; of a calendar window, its nominal length.
        ceiling_j: never exceeded where decisions are enforced, in joules; None for no ceiling.
        calendar: the window is the present hour, day, week (from Monday) or month of ``timezone``; None: it rolls.
        timezone: IANA name of the zone a calendar window begins and ends in.
        scope: the tasks that are under it without naming it: ``global``, ``team:NAME``, ``flow:NAME`` or
            ``pool:NAME``; empty: only those that name it.

    Raises:
        InputError: a limit or window of 0 or less, a ceiling below the limit, or an unknown zone, calendar or scope.
    """

    name: str
    limit_j: float
    window_s: float = DAY_S
    ceiling_j: float | None = None
    calendar: Calendar | None = None
    timezone: str = "UTC"
    scope: str = ""

    def __post_init__(self) -> None:
        what = f"budget {self.name!r}"
        if not self.limit_j > 0:
            raise InputError("BAD_BUDGET", f"{what}: limit is {self.limit_j:g} J", "give a limit above 0 J")
        if not self.window_s > 0:
            raise InputError("BAD_BUDGET", f"{what}: window is {self.window_s:g} s", "give a window above 0 s")
        if self.ceiling_j is not None and not self.ceiling_j >= self.limit_j:
            summary = f"{what}: ceiling {self.ceiling_j:g} J is below limit {self.limit_j:g} J"
            raise InputError("BAD_BUDGET", summary, "give a ceiling of the limit or more, or none")

    @classmethod
    def parse(
        cls,
        name: str,
        limit: object = None,
        window: object = DAY_S,
        ceiling: object = None,
        timezone: object = "UTC",
        scope: object = "",
        power: object = None,
    ) -> EnergyBudget:
        """A budget from numbers or texts: ``parse("team-a", "1.2 kWh", "1d")``.

        Raises:
            InputError: one of them is no energy or no duration, or out of range.
        """
        what = f"budget {name!r}"
        return cls(
            name=name,
            limit_j=parse_energy_j(limit, what=f"{what}: limit"),
            window_s=parse_duration_s(window, what=f"{what}: window"),
            ceiling_j=None if ceiling is None else parse_energy_j(ceiling, what=f"{what}: ceiling"),
        )

    @classmethod
    def from_table(cls, name: str, entry: object) -> EnergyBudget:
        """The budget that a table of a TOML file, or an engine's own configuration, describes.

        Raises:
            InputError: an unknown key, or a value that ``parse`` refuses.
        """
        if isinstance(entry, EnergyBudget):
            return entry
        if not isinstance(entry, Mapping) or "limit" not in entry:
            raise InputError("BAD_BUDGET", f"budget {name!r} has no limit", 'give it one, such as limit = "1 kWh"')
        for key in entry:
            if key not in _KEYS:
                summary = f"budget {name!r}: unknown key {key!r}"
                raise InputError("UNKNOWN_SETTING", summary, did_you_mean(str(key), _KEYS))
        return cls.parse(name, **entry)
