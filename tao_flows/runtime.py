"""The one place where configuration becomes working parts. Built on first use, once a process."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from tao_flows.admission import Admission
from tao_flows.agent.client import find_agent
from tao_flows.agent.meter import AgentMeter
from tao_flows.agent.wire import ClientRole
from tao_flows.calibration import Found, Host, find_baseline, places
from tao_flows.clock import Clock, SystemClock
from tao_flows.config import AGENT_OFF, ConfigWatcher, TaoConfig, state_directory
from tao_flows.errors import TaoError
from tao_flows.lazily import lazily
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.late import LateLedger
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.spool import spool_of
from tao_flows.meter import Meter
from tao_flows.profiles import Profiles
from tao_flows.records import Diagnosis, Incident, Segment
from tao_flows.signals.board import SignalBoard
from tao_flows.signals.keys import Credentials, KeySource
from tao_flows.signals.spec import SignalSpec
from tao_flows.signals.store import ForecastStore
from tao_flows.telemetry.cputime import HostBusy
from tao_flows.telemetry.discover import Discovery, discover
from tao_flows.telemetry.procfs import memory_used_bytes, this_segment
from tao_flows.tomlfile import CONNECTION

if TYPE_CHECKING:
    from tao_flows.federation.claims import Claims
    from tao_flows.federation.offers import PartnerPools

log = logging.getLogger("tao_flows")
SETTINGS_MAX_AGE_S = 0.1
"""How late a task may hear of the kill switch: looking at the settings costs as much as reading the counters."""
MAX_INCIDENTS = 1_000
"""Distinct incidents kept in memory; beyond that they are still logged by the ledger."""


class Incidents:
    """Failures of ours: each logged once, counted, written to the ledger where there is one, and never raised."""

    def __init__(self, clock: Clock) -> None:
        self.ledger: SafeLedger | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[Incident] = Counter()

    def note(self, code: str, summary: str, *, remedy: str = "", run_id: str = "", task: str = "") -> None:
        """Records a failure. Never raises."""
        kind = Incident(code, summary, remedy, run_id=run_id, task=task)
        with self._lock:
            first = kind not in self._counts
            if not first or len(self._counts) < MAX_INCIDENTS:
                self._counts[kind] += 1
        if first:
            log.warning("%s: %s%s", code, summary, f" ({remedy})" if remedy else "")
        if self.ledger is not None:
            self.ledger.put_incident(Incident(code, summary, remedy, self._clock.wall_ns(), 1, run_id, task))

    def note_failure(self, incident: Incident) -> None:
        """Records a failure of the ledger's own, which keeps it to write down itself."""
        with self._lock:
            self._counts[Incident(incident.code, incident.summary, incident.remedy, run_id=incident.run_id)] += 1

    def note_error(self, doing: str, error: BaseException, *, run_id: str = "", task: str = "") -> None:
        """Records an exception that stopped us from ``doing`` something."""
        if isinstance(error, TaoError):
            self.note(error.code, f"{doing}: {error.summary}", remedy=error.remedy, run_id=run_id, task=task)
        else:
            self.note("INTERNAL", f"{doing}: {type(error).__name__}: {error}", run_id=run_id, task=task)

    def of_run(self, run_id: str) -> tuple[Incident, ...]:
        """What was noted for a run, or for none in particular, in this process."""
        with self._lock:
            return tuple(
                Incident(kind.code, kind.summary, kind.remedy, 0, count, kind.run_id, kind.task)
                for kind, count in self._counts.items()
                if kind.run_id in {"", run_id}
            )


class Connections(Protocol):
    """What an engine keeps by name for us: settings that say ``conn:NAME``."""

    def ledger(self, name: str) -> Ledger:
        """Opens the ledger that a connection names.

        Raises:
            TaoError: it cannot be looked up, or names no ledger.
        """
        ...

    def credentials(self, spec: SignalSpec) -> Credentials | None:
        """The key of a signal's provider; None where the signal names no connection.

        Raises:
            SourceError: it cannot be looked up.
        """
        ...


@dataclass
class Tao:
    """Everything that works together in one process."""

    watcher: ConfigWatcher
    discovery: Discovery
    meter: Meter
    ledger: SafeLedger
    incidents: Incidents
    segment: Segment
    clock: Clock
    profiles: Profiles
    admission: Admission

    @lazily
    def partners(self) -> PartnerPools:
        """Other organisations' pools that are trusted now."""
        from tao_flows.federation.offers import PartnerPools

        return PartnerPools(self.ledger, self.clock, self.incidents)

    @lazily
    def claims(self) -> Claims:
        """What partners say of the runs that were sent to them."""
        from tao_flows.federation.claims import Claims

        return Claims(self.ledger, self.clock, self.incidents)

    @property
    def config(self) -> TaoConfig:
        """The settings as they stand: a change of the file or the environment counts a moment later."""
        return self.watcher.get(SETTINGS_MAX_AGE_S).config


def build(
    watcher: ConfigWatcher,
    clock: Clock | None = None,
    *,
    role: ClientRole = "none",
    connections: Connections | None = None,
) -> Tao:
    """Wires a ``Tao`` from settings. The node agent is looked for here, once.

    Args:
        watcher: the settings.
        clock: where time comes from.
        role: what this process is to a node agent, beside the windows opened in it.
        connections: where the engine keeps what settings name by ``conn:NAME``; it is looked up when it is needed.

    Raises:
        ConfigError: a setting is wrong.
    """
    clock = clock or SystemClock()
    config = watcher.get().config
    incidents = Incidents(clock)
    agent = find_agent(config.agent, role)
    discovery = discover(
        clock,
        sources=config.sources,
        powercap_root=config.powercap_root,
        proc_root=config.proc_root,
        agent=agent.offer,
        survey=False,
    )
    idle = calibration_of(config, discovery)
    busy = HostBusy(config.proc_root, config.cgroup_root)
    make_meter = Meter if agent.client is None else partial(AgentMeter, agent.client, discovery.of_agent)
    meter = make_meter(
        discovery.sources,
        discovery.estimator,
        busy.read_raw,
        lambda: memory_used_bytes(config.proc_root),
        clock,
        idle.baseline,
        busy.busy_s,
    )
    ledger = SafeLedger(
        named_ledger(config.ledger, connections),
        incidents.note_failure,
        spool=spool_of(config.ledger),
        on_first_end=partial(_tell_environment, incidents, watcher, discovery, clock),
    )
    incidents.ledger = ledger
    _tell_problems(incidents, config, agent.diagnosis, idle)
    segment = this_segment(config.proc_root)
    profiles = Profiles(ledger)
    board = signal_board(config, ledger, clock, None if connections is None else connections.credentials)
    # What partners take is not even loaded where none is named.
    admission = Admission(
        ledger, profiles, board, clock, incidents, partners=lambda now: tao.partners(now) if now.partners else ()
    )
    tao = Tao(watcher, discovery, meter, ledger, incidents, segment, clock, profiles, admission)
    return tao


def _tell_problems(incidents: Incidents, config: TaoConfig, agent: Diagnosis, idle: Found) -> None:
    if config.agent and agent.status != "ready" and config.agent != AGENT_OFF:
        # Where nobody asked for an agent, none is nothing to log.
        incidents.note(agent.code, agent.summary, remedy=agent.remedy)
    for problem in idle.problems:
        incidents.note(problem.code, problem.summary, remedy=problem.remedy)


def _tell_environment(incidents: Incidents, watcher: ConfigWatcher, discovery: Discovery, clock: Clock) -> None:
    """Records what this process runs in: once a process, when its first task has ended and before that one's end returns.

    It takes some 8 ms there, and as much again where what it needs is not loaded yet.
    """
    try:
        from tao_flows.governance.environment import captured

        if incidents.ledger is not None:
            incidents.ledger.put_environment(captured(watcher.get(SETTINGS_MAX_AGE_S), discovery, clock.wall_ns()))
    except Exception as error:  # noqa: BLE001 - what cannot be told is unknown
        incidents.note_error("telling what this process runs in", error)


def named_ledger(setting: str, connections: Connections | None = None) -> Ledger:
    """The ledger that the setting ``ledger`` names; one that is a connection is looked up on first use.

    Raises:
        ConfigError: LEDGER_URL or LEDGER_CONNECTION, as ``open_ledger``.
        MissingExtraError: what the ledger needs is not installed.
    """
    if connections is None or not setting.startswith(CONNECTION):
        return open_ledger(setting)
    # It has all of a ledger's methods, those of the one that it finds, and the type checker cannot see them.
    return cast("Ledger", LateLedger(setting, partial(connections.ledger, setting.removeprefix(CONNECTION).strip())))


def signal_board(
    config: TaoConfig, ledger: Ledger, clock: Clock | None = None, keys: KeySource | None = None
) -> SignalBoard | None:
    """The carbon and price signals that are configured; None where there are none."""
    if not config.signals:
        return None
    state = state_directory()
    cache = None if state is None else state / "signals"
    return SignalBoard.build(config.signals, ForecastStore(ledger), cache, clock, keys=keys)


def calibration_of(config: TaoConfig, discovery: Discovery) -> Found:
    """The idle baseline of the domains that are counted here; none is looked for where nothing is."""
    counted = [domain.id for source in discovery.sources for domain in source.domains if domain.counted]
    if not counted:
        return Found()
    return find_baseline(places(config.calibration), counted, lambda: Host.this(config.proc_root))


_lock = threading.Lock()
_tao: Tao | None = None
_failed = False


def current(
    make_watcher: Callable[[], ConfigWatcher] = ConfigWatcher,
    role: ClientRole = "none",
    connections: Connections | None = None,
) -> Tao | None:
    """This process's ``Tao``, built on first use; None when it cannot be built, which is logged once.

    Args:
        make_watcher: how an engine adapter adds the engine's own configuration.
        role: what the process is to a node agent, if this is the first use.
        connections: what the engine keeps by name.
    """
    global _tao, _failed
    if _tao is None and not _failed:
        with _lock:
            if _tao is None and not _failed:
                try:
                    _tao = build(make_watcher(), role=role, connections=connections)
                except Exception as error:  # noqa: BLE001 - without us the user's task must still run
                    _failed = True
                    log.warning("tao-flows is off in this process: %s", error)
    return _tao


def use(tao: Tao) -> None:
    """Has this process use a ``Tao`` that was built otherwise, such as with another clock."""
    global _tao
    _tao = tao


def built() -> Tao | None:
    """This process's ``Tao``, if it was used already."""
    return _tao


def forget() -> None:
    """Drops this process's ``Tao``: the next use builds it anew. Nothing of the old one is closed."""
    global _tao, _failed, _lock
    _tao, _failed, _lock = None, False, threading.Lock()


# A forked child has neither our threads nor the right to our locks: it builds its own.
os.register_at_fork(after_in_child=forget)
