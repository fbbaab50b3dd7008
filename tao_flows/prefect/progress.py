"""How far long waits have come, as a progress artifact of their flow run.

One thread serves all waits of a process. A flow run gets one artifact, written once, then at every tenth of the wait
and no more often than every ``EVERY_S``, and once at the end: a dozen calls of the API at most while its plans stand.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from tao_flows.prefect._compat import ArtifactCreate, ArtifactUpdate, impatient_client, settings_here
from tao_flows.records import Deferral, RunKey
from tao_flows.report.elements import when
from tao_flows.report.text import count
from tao_flows.report.wanted import report_wanted
from tao_flows.runtime import Tao
from tao_flows.units import NS_PER_S

log = logging.getLogger("tao_flows.progress")
LONG_S: Final = 300.0
"""A wait is shown that is planned to last this long."""
EVERY_S: Final = 30.0
MOST: Final = 50
"""Writes for one flow run by one process, however often plans move."""
_STEP: Final = 10.0
"""Percentage points worth a write."""


@dataclass
class _Run:
    """The waits of one flow run."""

    began_wall_ns: int
    plans: dict[RunKey, Deferral] = field(default_factory=dict)
    artifact: UUID | None = None
    told: float = -_STEP
    writes: int = 0

    def is_long(self) -> bool:
        """Whether it is worth showing."""
        return max(plan.start_wall_ns for plan in self.plans.values()) - self.began_wall_ns >= LONG_S * NS_PER_S

    def percent(self, now_wall_ns: int) -> float:
        """How much of the time until the last planned start has passed; 100 where nothing waits any more."""
        if not self.plans:
            return 100.0
        last_ns = max(plan.start_wall_ns for plan in self.plans.values())
        passed = (now_wall_ns - self.began_wall_ns) / max(1, last_ns - self.began_wall_ns)
        return round(100.0 * min(max(passed, 0.0), 0.99), 1)

    def text(self) -> str:
        """What is waited for."""
        if not self.plans:
            return "Nothing waits any more."
        last = max(self.plans.values(), key=lambda plan: plan.start_wall_ns)
        latest_ns = max(plan.latest_wall_ns for plan in self.plans.values())
        return (
            f"{count(len(self.plans), 'start')} put off, the last planned for {when(last.start_wall_ns)} UTC and at "
            f"the latest at {when(latest_ns)} UTC"
        )


class Progress:
    """The progress artifacts of this process's waits. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._running = False

    @contextmanager
    def shown(self, tao: Tao, plan: Deferral) -> Iterator[None]:
        """Shows a wait while the block lasts, if it is long. Never raises of itself, and never waits."""
        self._try(tao, plan, begins=True)
        try:
            yield
        finally:
            with self._lock:
                run = self._runs.get(plan.key.run_id)
                if run is not None:
                    run.plans.pop(plan.key, None)

    def moved(self, tao: Tao, plan: Deferral) -> None:
        """A wait that is shown goes on by another plan. Never raises, and never waits."""
        self._try(tao, plan, begins=False)

    def _try(self, tao: Tao, plan: Deferral, *, begins: bool) -> None:
        try:
            self._follow(tao, plan, begins=begins)
        except Exception as ours:  # noqa: BLE001 - what is shown is not what is done
            tao.incidents.note_error("showing how far a wait has come", ours, run_id=plan.key.run_id)

    def _follow(self, tao: Tao, plan: Deferral, *, begins: bool) -> None:
        run_id = plan.key.run_id
        # One outside any flow run has no page to be shown on.
        wanted = plan.key.instance != run_id and report_wanted(tao.config.report_artifacts, run_id, good=True)
        with self._lock:
            run = self._runs.get(run_id)
            if begins and run is None and wanted:
                run = self._runs[run_id] = _Run(tao.clock.wall_ns())
            if run is None or not (begins or plan.key in run.plans):
                return
            run.plans[plan.key] = plan
            if self._running or not run.is_long():
                return
            threading.Thread(
                target=self._serve, args=(tao, settings_here()), name="tao-flows-progress", daemon=True
            ).start()
            self._running = True

    def _serve(self, tao: Tao, here: Any) -> None:
        with here:
            while self._look(tao):
                time.sleep(EVERY_S)

    def _look(self, tao: Tao) -> bool:
        """Writes what has changed; False where nothing is left to be shown."""
        now_ns = tao.clock.wall_ns()
        with self._lock:
            due = {run_id: run for run_id, run in self._runs.items() if _is_due(run, now_ns)}
            self._runs = {run_id: run for run_id, run in self._runs.items() if run.plans}
            self._running = bool(self._runs)
            goes_on = self._running
        for run_id, run in due.items():
            try:
                _write(run, run_id, now_ns)
            except Exception as error:  # noqa: BLE001 - it is tried again at the next look, as long as it is of use
                log.info("how far a wait of %s has come cannot be shown: %s", run_id, error)
        return goes_on


def _is_due(run: _Run, now_ns: int) -> bool:
    if not run.plans:
        return run.artifact is not None
    return run.is_long() and run.writes < MOST and abs(run.percent(now_ns) - run.told) >= _STEP


def _write(run: _Run, run_id: str, now_ns: int) -> None:
    percent, text = run.percent(now_ns), run.text()
    run.writes += 1
    with impatient_client() as client:
        if run.artifact is None:
            made = ArtifactCreate(type="progress", description=text, data=percent, flow_run_id=UUID(run_id))
            run.artifact = client.create_artifact(made).id
        else:
            client.update_artifact(run.artifact, ArtifactUpdate(description=text, data=percent))
    run.told = percent


progress: Final = Progress()
"""This process's."""
