"""Whose a GPU's joules are. Pure: a counter's difference and who used the GPU in, microjoules by party out.

The rule, for each GPU and slot or window (the lines sum to the counter exactly):

* Nobody holds it: the baseline is idle, the rest unattributed.
* Held, and no process used it through all of that time: allocated-idle, the whole of it.
* Held and used: the baseline is allocated-idle. The rest is its user's where one party alone holds it; of several
  users each has the share of its utilisation in the sum of all processes', whoever they belong to.

Without a calibrated baseline there is none to take off. Allocated-idle is a line of the account and in no task's
figure. Where holders or their utilisation cannot be told, the parts are unknown, and their joules unattributed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tao_flows.attribution import Split, apportion
from tao_flows.figures import Figure, Quality
from tao_flows.telemetry.base import DeviceUse

GPU_INTENSITY: Final = 4.0
"""How much more, or less, power a process's utilised second can draw than another's. Utilisation is the time in which
a kernel ran, whether on one multiprocessor or on all, and so says less of power than CPU time does: twice
``attribution.INTENSITY``, and like it a stated rule, not a measurement. It gives a share s the interval
[s / (s + GPU_INTENSITY (1 - s)), GPU_INTENSITY s / (GPU_INTENSITY s + 1 - s)]."""
UTILISATION_S: Final = 1.0
"""NVML's utilisation is of periods between 1/6 s and 1 s (nvidia-smi(1), "Utilization"), which begin and end where
they like: at each end of a window as much may be of the time outside, or missing."""

GPU_NOT_HELD: Final = "GPU_NOT_HELD"
"""No process held it at any time."""
GPU_HOLDERS_UNKNOWN: Final = "GPU_HOLDERS_UNKNOWN"
"""It could not be told which processes held it."""
GPU_HELD_BY_OTHERS: Final = "GPU_HELD_BY_OTHERS"
"""Held, and by none of ours."""
GPU_HELD_ALONE: Final = "GPU_HELD_ALONE"
"""One party's processes held it, and no others."""
GPU_HELD_IDLE: Final = "GPU_HELD_IDLE"
"""Held by one of ours at least, and used by nobody."""
GPU_SHARED: Final = "GPU_SHARED"
"""Held by several that cannot be told apart: the part of each is unknown."""
GPU_SHARED_BY_UTILISATION: Final = "GPU_SHARED_BY_UTILISATION"
"""Held by several, each with the share of its utilisation."""

_TASK: Final = 0
"""The only party of a window."""


@dataclass(frozen=True, slots=True)
class GpuSlot:
    """One GPU's microjoules over a slot, split: the parts, idle, allocated-idle and unattributed sum to the counter."""

    parties_uj: dict[int, int]
    """By party, of all that held or used it and whose part is known."""
    idle_uj: int | None
    """The baseline while nobody held it; None without calibration."""
    allocated_idle_uj: int
    unattributed_uj: int
    code: str
    """Which case of the rule it was: one of the codes above."""
    unknown_parties: frozenset[int] | None = frozenset()
    """Parties that held it and whose part cannot be said; None where that may be any."""

    def party_uj(self, party: int) -> int | None:
        """What it drew for a party: 0 for one that had nothing to do with it, None where that cannot be said."""
        if self.unknown_parties is None or party in self.unknown_parties:
            return None
        return self.parties_uj.get(party, 0)


def split_gpu_slot(
    counter_uj: int,
    idle_uj: int | None,
    holders: frozenset[int] | None,
    utilisation: Mapping[int, float] | None,
    party_of: Callable[[int], int | None],
) -> GpuSlot:
    """Splits a GPU's joules by the module's rule.

    Args:
        counter_uj: what the GPU drew over the slot.
        idle_uj: what it draws at rest in that time; None without calibration.
        holders: processes that held it at any time; None where that cannot be told.
        utilisation: by process, in any unit that is proportional to the time used; empty where nobody used it, None
            where that cannot be told. Only the proportions count.
        party_of: the party of a process, or None where it is nobody's. Two tasks in one process are nobody's.
    """
    rest_uj = 0 if idle_uj is None else min(counter_uj, idle_uj)
    active_uj = counter_uj - rest_uj
    used = {pid: share for pid, share in (utilisation or {}).items() if share > 0}
    users = (holders or frozenset()) | used.keys()
    if not users:
        code, unknown = (GPU_HOLDERS_UNKNOWN, None) if holders is None else (GPU_NOT_HELD, frozenset[int]())
        return GpuSlot({}, None if idle_uj is None else rest_uj, 0, active_uj, code, unknown)
    owners = {pid: party_of(pid) for pid in users}
    parties = frozenset(party for party in owners.values() if party is not None)
    no_idle_uj = None if idle_uj is None else 0
    if utilisation is not None and not used:
        code = GPU_HELD_IDLE if parties else GPU_HELD_BY_OTHERS
        return GpuSlot(dict.fromkeys(parties, 0), no_idle_uj, counter_uj, 0, code)
    if not parties:
        return GpuSlot({}, no_idle_uj, rest_uj, active_uj, GPU_HELD_BY_OTHERS)
    if holders is not None and set(owners.values()) == parties and len(parties) == 1:
        return GpuSlot(dict.fromkeys(parties, active_uj), no_idle_uj, rest_uj, 0, GPU_HELD_ALONE)
    if not used:
        return GpuSlot({}, no_idle_uj, rest_uj, active_uj, GPU_SHARED, parties)
    weights = dict.fromkeys(sorted(parties), 0.0)
    others = 0.0
    for pid, share in sorted(used.items()):
        party = owners[pid]
        if party is None:
            others += share
        else:
            weights[party] += share
    *parts, others_uj = apportion(active_uj, [*weights.values(), others])
    return GpuSlot(dict(zip(weights, parts, strict=True)), no_idle_uj, rest_uj, others_uj, GPU_SHARED_BY_UTILISATION)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Who held a GPU during a window, and how much each process used it."""

    holders: frozenset[int] | None
    """Processes seen on it, or None when it could not be said."""
    ours: frozenset[int]
    """The task's processes."""
    alone_in_process: bool
    """False when another window was open in the same process."""
    utilisation: Mapping[int, float] | None = None
    """By process; None where it could not be said."""
    code: str = ""
    """Why there is no utilisation, where there is a reason."""


@dataclass(slots=True)
class Held:
    """What was seen of each GPU while a window was open."""

    pids: dict[str, frozenset[int] | None] = field(default_factory=dict)
    """By domain; None where it could not be said at some time."""
    utilisation: dict[str, dict[int, float]] = field(default_factory=dict)
    """By domain and process, summed; a domain of which nothing could be said is not in it."""
    codes: dict[str, str] = field(default_factory=dict)
    """By domain: why nothing could be said."""
    ours: set[int] = field(default_factory=set)
    """Those that were this process, or started by it."""

    def see(self, domain: str, use: DeviceUse) -> None:
        """Takes in what is seen of a GPU now."""
        if use.code:
            self.codes[domain] = use.code
        # What is seen first was used before the window.
        if use.utilisation is not None and domain in self.pids:
            sums = self.utilisation.setdefault(domain, {})
            for pid, share in use.utilisation.items():
                sums[pid] = sums.get(pid, 0.0) + share
        before = self.pids.get(domain, frozenset())
        self.pids[domain] = None if before is None or use.holders is None else before | use.holders

    def use(self, domain: str, ours: frozenset[int], *, alone_in_process: bool) -> GpuUse:
        """What a window whose processes are ``ours`` has seen of a GPU."""
        code = self.codes.get(domain, "")
        return GpuUse(self.pids.get(domain), ours, alone_in_process, self.utilisation.get(domain), code)


def split_gpu(
    domain: str,
    source: str,
    counter_uj: int,
    idle_uj: int | None,
    use: GpuUse,
    wall_s: float,
    *,
    idle_spread_uj: int = 0,
) -> tuple[Split, tuple[str, ...]]:
    """A GPU's joules as a window sees them, and codes that say why.

    Args:
        domain: the GPU.
        source: what read it.
        counter_uj: what it drew.
        idle_uj: what it draws at rest in that time; None without calibration.
        use: who used it.
        wall_s: how long the window was, in seconds.
        idle_spread_uj: how far ``idle_uj`` may be off either way.
    """
    utilisation = use.utilisation
    if utilisation is not None and wall_s < 2 * UTILISATION_S and not any(utilisation.values()):
        utilisation = None  # no period need have lain within the window: it may have been used all through it
    slot = split_gpu_slot(counter_uj, idle_uj, use.holders, utilisation, lambda pid: _TASK if pid in use.ours else None)
    tasks_uj, unattributed_uj, code = slot.party_uj(_TASK), slot.unattributed_uj, slot.code
    if not use.alone_in_process and (tasks_uj or code == GPU_HELD_ALONE):
        unattributed_uj += tasks_uj or 0
        tasks_uj, code = None, GPU_SHARED
    figure = Figure.unknown(domain)
    if tasks_uj is not None:
        # The most that active can be, and the least.
        most_uj = counter_uj - min(counter_uj, max(0, (idle_uj or 0) - idle_spread_uj))
        least_uj = counter_uj - min(counter_uj, (idle_uj or 0) + idle_spread_uj)
        low, high = _bounds(code, utilisation or {}, use.ours, wall_s)
        quality = Quality.MEASURED if code == GPU_HELD_ALONE else Quality.ATTRIBUTED
        # A float cannot hold every number of microjoules: nor may rounding pass what there is.
        low_uj, high_uj = min(tasks_uj, round(least_uj * low)), max(tasks_uj, min(most_uj, round(most_uj * high)))
        figure = Figure(tasks_uj, low_uj, high_uj, quality, (source,))
    split = Split(tasks_uj, 0, slot.idle_uj, unattributed_uj, figure, slot.allocated_idle_uj)
    is_ours = code not in {GPU_NOT_HELD, GPU_HELD_BY_OTHERS}
    return split, (code, use.code) if use.code and is_ours else (code,)


def _bounds(code: str, utilisation: Mapping[int, float], ours: frozenset[int], wall_s: float) -> tuple[float, float]:
    """The least and the most share of active joules that the task can have drawn."""
    if code == GPU_HELD_ALONE:
        return 1.0, 1.0
    if code not in {GPU_HELD_IDLE, GPU_SHARED_BY_UTILISATION}:
        return 0.0, 0.0
    whole = sum(utilisation.values())
    share = sum(part for pid, part in utilisation.items() if pid in ours) / whole if whole else 0.0
    missed = min(1.0, 2 * UTILISATION_S / wall_s) if wall_s > 0 else 1.0
    least, most = max(0.0, share - missed), min(1.0, share + missed)
    return least / (least + GPU_INTENSITY * (1 - least)), GPU_INTENSITY * most / (GPU_INTENSITY * most + 1 - most)
