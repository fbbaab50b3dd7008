"""Energy budgets: joules that tasks may use together, in a window, within a scope."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timezone as fixed_zone
from datetime import tzinfo
from typing import Final, Literal, get_args

from tao_flows.errors import InputError
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import NS_PER_S, format_duration, parse_duration_s, parse_energy_j, parse_power_w

Calendar = Literal["hour", "day", "week", "month"]
CALENDARS: Final[tuple[Calendar, ...]] = get_args(Calendar)
DAY_S: Final = 86_400.0
POWER_WINDOW_S: Final = 60.0
"""The window of a power cap that names none: short enough to hold the draw, long enough for tasks to be counted."""
MAX_WINDOW_S: Final = 3_660 * DAY_S
"""Ten years: what was charged is kept for as long as a window."""
_NOMINAL_S: Final[Mapping[Calendar, float]] = {"hour": 3_600.0, "day": DAY_S, "week": 7 * DAY_S, "month": 30 * DAY_S}
_SCOPES: Final = ("team", "flow", "pool")
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
        if not 0 < self.limit_j < math.inf:
            raise InputError("BAD_BUDGET", f"{what}: limit is {self.limit_j:g} J", "give a limit above 0 J")
        if not 0 < self.window_s <= MAX_WINDOW_S:
            remedy = f"give a window above 0 s, up to {MAX_WINDOW_S / DAY_S:.0f} days"
            raise InputError("BAD_BUDGET", f"{what}: window is {self.window_s:g} s", remedy)
        if self.ceiling_j == math.inf:
            raise InputError("BAD_BUDGET", f"{what}: ceiling is not finite", "give a ceiling in joules, or none")
        if self.ceiling_j is not None and not self.ceiling_j >= self.limit_j:
            summary = f"{what}: ceiling {self.ceiling_j:g} J is below limit {self.limit_j:g} J"
            raise InputError("BAD_BUDGET", summary, "give a ceiling of the limit or more, or none")
        if self.calendar is not None and self.calendar not in CALENDARS:
            remedy = f"give a duration, or {', '.join(CALENDARS)}"
            raise InputError("BAD_BUDGET", f"{what}: window {self.calendar!r} is not known", remedy)
        _check_scope(self.scope, what)
        zone_of(self.timezone, what)

    @property
    def power_w(self) -> float:
        """Mean watts that use up the limit in a window."""
        return self.limit_j / self.window_s

    @property
    def window(self) -> str:
        """The window for people: ``24 h 0 min, rolling`` or ``day in Europe/Berlin``."""
        return f"{self.calendar} in {self.timezone}" if self.calendar else f"{format_duration(self.window_s)}, rolling"

    def covers(self, *, team: str = "", flow: str = "", pool: str = "") -> bool:
        """Whether a task is under it by its scope, without naming it."""
        kind, _, name = self.scope.partition(":")
        return kind == "global" or (bool(name) and name == {"team": team, "flow": flow, "pool": pool}[kind])

    @classmethod
    def parse(
        cls,
        name: str,
        limit: object = None,
        window: object = None,
        ceiling: object = None,
        timezone: object = "UTC",
        scope: object = "",
        power: object = None,
    ) -> EnergyBudget:
        """A budget from numbers or texts: ``parse("team-a", "1.2 kWh", "1d")``.

        Args:
            name: what tasks call it by.
            limit: an energy; or none, and ``power`` instead.
            window: a duration, which rolls (one day if not given), or ``hour``, ``day``, ``week`` or ``month``.
            ceiling: an energy; of a power cap, a power.
            timezone: IANA name of the zone a calendar window begins and ends in.
            scope: ``global``, ``team:NAME``, ``flow:NAME``, ``pool:NAME``, or empty.
            power: watts to stay within on average over a short rolling window (60 s if not given): a power cap.

        Raises:
            InputError: one of them is no energy, no power or no duration, or out of range.
        """
        what = f"budget {name!r}"
        for field, value in (("timezone", timezone), ("scope", scope)):
            if not isinstance(value, str):
                raise InputError("BAD_BUDGET", f"{what}: {field} {value!r} is not a text", f'write {field} = "..."')
        if (limit is None) == (power is None):
            said = "has no limit" if limit is None else "has both a limit and a power"
            raise InputError("BAD_BUDGET", f"{what} {said}", 'give it limit = "1 kWh", or power = "500 W"')
        calendar: Calendar | None = None
        if window in CALENDARS:
            if power is not None:
                remedy = 'give a duration, such as "60s"'
                raise InputError("BAD_BUDGET", f"{what}: a power cap cannot have the window {window!r}", remedy)
            calendar = window
            window_s = _NOMINAL_S[calendar]
        elif window is None:
            window_s = DAY_S if power is None else POWER_WINDOW_S
        else:
            window_s = parse_duration_s(window, what=f"{what}: window")

        def energy_j(value: object, field: str) -> float:
            if power is None:
                return parse_energy_j(value, what=f"{what}: {field}")
            return parse_power_w(value, what=f"{what}: {field}") * window_s

        return cls(
            name=name,
            limit_j=energy_j(power, "power") if limit is None else energy_j(limit, "limit"),
            window_s=window_s,
            ceiling_j=None if ceiling is None else energy_j(ceiling, "ceiling"),
            calendar=calendar,
            timezone=str(timezone),
            scope=str(scope),
        )

    @classmethod
    def from_table(cls, name: str, entry: object) -> EnergyBudget:
        """The budget that a table of a TOML file, or an engine's own configuration, describes.

        Raises:
            InputError: an unknown key, or a value that ``parse`` refuses.
        """
        if isinstance(entry, EnergyBudget):
            return entry
        if not isinstance(entry, Mapping) or not {"limit", "power"} & set(entry):
            raise InputError("BAD_BUDGET", f"budget {name!r} has no limit", 'give it one, such as limit = "1 kWh"')
        for key in entry:
            if key not in _KEYS:
                summary = f"budget {name!r}: unknown key {key!r}"
                raise InputError("UNKNOWN_SETTING", summary, did_you_mean(str(key), _KEYS))
        return cls.parse(name, **entry)


def budgets_over(
    budgets: Iterable[EnergyBudget], named: str = "", *, team: str = "", flow: str = "", pool: str = ""
) -> list[EnergyBudget]:
    """The budgets a task is under: the one it names, and every one whose scope it falls under; by name."""
    over = {b.name: b for b in budgets if b.name == named or b.covers(team=team, flow=flow, pool=pool)}
    return [over[name] for name in sorted(over)]


def charge_uj(budget: EnergyBudget, energy_uj: int, runtime_s: float | None) -> int:
    """What a run of ``energy_uj`` takes of a budget, in microjoules, rounded up.

    No rolling window ever holds more of a run than its own length: of one that takes longer, that share counts. This
    is what makes a short window a power cap. In a calendar window, and where the runtime is unknown, all of it counts.
    """
    if budget.calendar is not None or runtime_s is None or runtime_s <= budget.window_s:
        return energy_uj
    return -(-energy_uj * round(budget.window_s * NS_PER_S) // round(runtime_s * NS_PER_S))


def zone_of(name: str, what: str) -> tzinfo:
    """The zone of an IANA name; UTC needs no time zone data.

    Raises:
        InputError: BAD_BUDGET, this host knows no such zone.
    """
    if name == "UTC":
        return fixed_zone.utc
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):  # by Python's version, and by what the name looks like
        remedy = 'give an IANA name such as "Europe/Berlin"; where the system has no zones: pip install tzdata'
        raise InputError("BAD_BUDGET", f"{what}: timezone {name!r} is not known here", remedy) from None


def _check_scope(scope: str, what: str) -> None:
    kind, colon, name = scope.partition(":")
    if scope in {"", "global"} or (kind in _SCOPES and name):
        return
    problem = f"scope {scope!r} names no {kind}" if kind in _SCOPES and colon else f"scope {scope!r} is not known"
    raise InputError("BAD_BUDGET", f"{what}: {problem}", "give global, team:NAME, flow:NAME, pool:NAME, or none")
