"""How a worker pool stands now: what was seen of it, by whom, and for how long that is to be believed.

A source (a Prometheus server, an agent, an engine's adapter) writes down what it saw and when. Each field is taken from
the source that saw it last. What is older than a limit is not believed: the field is then unknown, and where the
description of the pool says something of it, that stands in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from tao_flows.clock import iso_from_ns
from tao_flows.errors import InputError
from tao_flows.pools import WorkerPool
from tao_flows.units import NS_PER_S, s_from_ns

T = TypeVar("T")

MAX_AGE_S: Final = 120.0
"""What was seen longer ago is not believed: four scrapes of a Prometheus server at its usual 30 s."""
LEAST_CAP_SHARE: Final = 1e-3
"""Of a power cap that is used up this much is left in a request, in which a cap is above 0 W."""
THERMAL_ROOT: Final = Path("/sys/class/thermal")
_ABSOLUTE_ZERO_C: Final = -273.15
_MOST_AT_ONCE: Final = 16
"""Servers asked side by side, so that one that does not answer holds up none of the others."""
# Types of the kernel's thermal zones that tell the processor's own temperature.
_CPU_ZONES: Final = ("x86_pkg_temp", "cpu", "soc", "coretemp", "k10temp")


@dataclass(frozen=True, slots=True)
class PoolState:
    """What one source saw of one pool. None: it did not see that.

    Raises:
        InputError: BAD_POOL_STATE, no pool or source is named, or a figure is not finite or out of range.
    """

    pool_id: str
    source: str
    """Names who saw it, such as ``prometheus`` or ``agent:node-1``; each source overwrites its own last state."""
    seen_wall_ns: int
    """When, by the source's clock; hosts are taken to agree on the time to within the limit of age."""
    online: bool | None = None
    capacity_free: int | None = None
    """Tasks that could start at once."""
    queue_wait_s: float | None = None
    power_w: float | None = None
    """Watts of the whole pool, not of a task."""
    temperature_c: float | None = None

    def __post_init__(self) -> None:
        least = {"capacity_free": 0, "queue_wait_s": 0.0, "power_w": 0.0, "temperature_c": _ABSOLUTE_ZERO_C}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value >= bound):
                summary = f"pool {self.pool_id!r}: {name} is {value!r}"
                raise InputError("BAD_POOL_STATE", summary, f"give a finite number of {bound:g} or more, or None")
        if not self.pool_id or not self.source:
            raise InputError("BAD_POOL_STATE", "a state names no pool or no source", "give both as texts")


_OBSERVED: Final = tuple(f.name for f in fields(PoolState) if f.name not in {"pool_id", "source", "seen_wall_ns"})


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """One field of a pool's state."""

    value: T
    seen_wall_ns: int
    source: str

    def age_s(self, now_wall_ns: int) -> float:
        """Seconds since it was seen; below 0 where the source's clock is ahead."""
        return s_from_ns(now_wall_ns - self.seen_wall_ns)


@dataclass(frozen=True, slots=True)
class LiveState:
    """How a pool stands now, field by field. None: nobody saw it, or too long ago."""

    online: Seen[bool] | None = None
    capacity_free: Seen[int] | None = None
    queue_wait_s: Seen[float] | None = None
    power_w: Seen[float] | None = None
    temperature_c: Seen[float] | None = None
    stale: Mapping[str, Seen[Any]] = field(default_factory=dict)
    """By field, what was seen last, where that is too long ago to be believed."""


def live(states: Iterable[PoolState], now_wall_ns: int, max_age_s: float = MAX_AGE_S) -> LiveState:
    """The state of one pool from what its sources saw. The order of the states does not matter.

    What bears a time further ahead than ``max_age_s`` is not believed either: a clock is wrong.
    """
    newest: dict[str, Seen[Any]] = {}
    for state in sorted(states, key=lambda state: (state.seen_wall_ns, state.source)):
        for name in _OBSERVED:
            if (value := getattr(state, name)) is not None:
                newest[name] = Seen(value, state.seen_wall_ns, state.source)
    believed = {name for name, seen in newest.items() if abs(seen.age_s(now_wall_ns)) <= max_age_s}
    return LiveState(
        **{name: seen for name, seen in newest.items() if name in believed},
        stale={name: seen for name, seen in newest.items() if name not in believed},
    )


def remaining_cap_w(pool: WorkerPool, state: LiveState) -> float | None:
    """The power cap that is left for one more task; None where the pool has no cap.

    A request weighs one task's watts against a cap. The cap is the whole pool's, which already draws what was measured:
    ``cap - measured`` is left for the task. A draw that is unknown, or was measured too long ago, leaves the whole cap:
    nothing is refused on a guess. A cap that is used up leaves ``LEAST_CAP_SHARE`` of itself, which a task breaks the
    more the more it draws, so that of two full pools the one is still preferred where it draws less.
    """
    cap_w = pool.power_cap_w
    if cap_w is None or state.power_w is None:
        return cap_w
    return max(cap_w - state.power_w.value, cap_w * LEAST_CAP_SHARE)


def live_fields(pool: WorkerPool, state: LiveState) -> dict[str, Any]:
    """The fields of a pool in a request that depend on how it stands now.

    What is described and seen is taken as seen, but for ``online``: a pool described as offline stays offline.
    """
    return {
        "online": pool.online and (state.online is None or state.online.value),
        "capacity_free": None if state.capacity_free is None else state.capacity_free.value,
        "queue_wait_s": pool.queue_wait_s if state.queue_wait_s is None else state.queue_wait_s.value,
        "power_cap_w": remaining_cap_w(pool, state),
        "temperature_c": None if state.temperature_c is None else state.temperature_c.value,
        "temperature_limit_c": pool.temperature_limit_c,
    }


def capacity_by_slot(pool: WorkerPool, slot_s: float, planned_wall_ns: Iterable[int]) -> dict[str, int] | None:
    """Places left, by the start of the slot, in each slot that has a planned start in it.

    Slots are counted from the epoch, as ``DeferralStore.plan`` counts them, and not from the present: plans made moments
    apart then mean the same slots. A slot that is not listed has all its places.

    Args:
        pool: its ``places`` are what a slot holds; None, where it plans without limit.
        slot_s: seconds from slot to slot, above 0.
        planned_wall_ns: the starts of the open deferrals to the pool.

    Returns:
        Counts by ISO 8601 time, as a request takes them; None where there is no limit.
    """
    if pool.places is None:
        return None
    slot_ns = max(1, round(slot_s * NS_PER_S))
    taken = Counter(start_ns // slot_ns * slot_ns for start_ns in planned_wall_ns)
    return {str(iso_from_ns(begin_ns)): max(0, pool.places - count) for begin_ns, count in sorted(taken.items())}


def refresh_power(pools: Sequence[WorkerPool], now_wall_ns: int) -> tuple[PoolState, ...]:
    """What the pools draw by the Prometheus servers that their descriptions name, all asked side by side.

    Those that do not tell are left out. Takes as long as the slowest server's time-out, so never in a task's way.
    """
    from concurrent.futures import ThreadPoolExecutor

    asked = [(pool, pool.power_from) for pool in pools if pool.power_from is not None]
    with ThreadPoolExecutor(_MOST_AT_ONCE) as executor:
        answers = list(executor.map(lambda pair: pair[1].read(), asked))
    return tuple(
        PoolState(pool.pool_id, "prometheus", power.at_wall_ns or now_wall_ns, power_w=power.power_w)
        for (pool, _), power in zip(asked, answers, strict=True)
        if power.power_w is not None
    )


def host_state(pool_id: str, host: str, now_wall_ns: int, thermal_root: Path = THERMAL_ROOT) -> PoolState | None:
    """How warm this host is, as a state of the pool that it belongs to; None where the kernel tells no temperature.

    The hottest thermal zone of the processor; where none is named as such, the hottest of all.
    """
    zones: list[tuple[str, float]] = []
    for zone in sorted(thermal_root.glob("thermal_zone*")):
        try:
            kind, milli_c = (zone / "type").read_text().strip(), int((zone / "temp").read_text())
        except (OSError, ValueError):  # a zone that sleeps refuses to be read
            continue
        if milli_c / 1000 > _ABSOLUTE_ZERO_C:
            zones.append((kind, milli_c / 1000))
    of_cpu = [temperature_c for kind, temperature_c in zones if kind.startswith(_CPU_ZONES)]
    temperatures_c = of_cpu or [temperature_c for _, temperature_c in zones]
    if not temperatures_c:
        return None
    return PoolState(pool_id, f"host:{host}", now_wall_ns, temperature_c=max(temperatures_c))
