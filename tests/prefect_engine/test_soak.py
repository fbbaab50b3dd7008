"""Flow runs of all kinds while whatever they stand on is killed: none is lost, doubled, or failed by us.

A minute here; ``make soak`` runs an hour. The ledger is a file, which another holds now and then. A full disk and clocks
that jump have tests of their own (``test_faults.py``, ``test_controller.py``).
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from deferring import FLOWS, SETTINGS, TAO_FLOWS, Site, Started, read, until
from prefect import Flow
from prefect.client.schemas.objects import State, StateType
from soaking import SEED, SOAK_S, check_ledger, ours_raised, soak

from tao_flows.ledger.deferrals import DeferralStore

pytestmark = pytest.mark.alone

FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}
DONE = Counter({**{f"step {number}": 1 for number in range(4)}, "flaky 1": 1, "flaky 2": 1})


@dataclass
class Soaked(Site):
    """A site with an agent."""

    up: dict[str, tuple[Started, Callable[[], Started]]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        own = {"TAO_FLOWS_AGENT": str(self.folder / "agent.sock"), "XDG_STATE_HOME": str(self.folder / "state")}
        return {**super().env, **own}

    def deploy(self, name: str, tags: tuple[str, ...] = ()) -> UUID:  # type: ignore[override]
        flow = Flow.from_source(str(FLOWS), "soaked.py:noted")
        assert isinstance(flow, Flow)
        made = flow.deploy(
            name, work_pool_name=self.pool, tags=list(tags), print_next_steps=False, ignore_warnings=True
        )
        assert isinstance(made, UUID)
        return made

    def keep(self, name: str, start: Callable[[], Started]) -> None:
        """Starts a program that is to be there."""
        self.up[name] = (start(), start)

    def kill(self, name: str) -> None:
        """Kills a program, not what it has started, and starts it anew."""
        started, start = self.up[name]
        os.kill(started.process.pid, signal.SIGKILL)
        started.process.wait()
        self.up[name] = (start(), start)

    def agent(self) -> Started:
        command = [TAO_FLOWS, "agent", "--socket", str(self.folder / "agent.sock")]
        return self._start(command, f"agent-{len(self.processes)}", None)


@pytest.fixture
def site(server: str, tmp_path: Path) -> Iterator[Soaked]:
    assert server
    made = Soaked(tmp_path, "soaked")
    yield made
    made.close()


def test_nothing_is_lost_doubled_or_failed_by_us_whatever_is_killed(
    site: Soaked, kill_server: Callable[[], None]
) -> None:
    waits = site.set_up(kind="tao-process")
    (site.folder / "tao-flows.toml").write_text(f'{SETTINGS}[budgets.soak]\nlimit = "1 kWh"\n')
    at_once = site.deploy("at-once")
    site.keep("agent", site.agent)
    site.keep("worker", site.worker)
    site.keep("controller", site.controller)
    rng, ids = random.Random(SEED), list[UUID]()

    def work(number: int) -> None:
        ids.extend(site.create(waits if number % 2 else at_once, 1))

    def lock_ledger() -> None:
        with closing(sqlite3.connect(site.folder / "ledger.db", isolation_level=None)) as blocker:
            blocker.execute("BEGIN EXCLUSIVE")
            time.sleep(4)

    def lose_signals() -> None:
        (site.folder / "carbon.csv").write_text("not a signal any more\n")

    def change_signals() -> None:
        site.flip() if rng.random() < 0.5 else site.signal((-60, 500.0), (60, 20.0), (180, 500.0))

    troubles: dict[str, Callable[[], None]] = {
        **{f"kill the {name}": lambda name=name: site.kill(name) for name in site.up},  # type: ignore[misc]
        "kill Prefect's server": kill_server,
        "lock the ledger": lock_ledger,
        "lose the signals": lose_signals,
        "change the signals": change_signals,
    }
    had = soak(work, troubles, most_rest_s=min(8.0, SOAK_S / 10))
    site.flip()
    logs = [started for started, _ in site.up.values()]
    until(lambda: _all_ended(ids), "all to have ended", *logs, patience_s=300.0)
    until(lambda: _open(site) == 0, "no wait to be open", *logs, patience_s=60.0)
    for name in list(site.up):
        site.up.pop(name)[0].stop()
    done = subprocess.run([TAO_FLOWS, "spool", "flush"], env=site.env, capture_output=True, text=True, check=False)
    ran = {
        run_id: Counter((site.folder / "ran" / str(run_id)).read_text().splitlines())
        for run_id in ids
        if _ran(site, run_id)
    }
    states = _states(ids)
    print(dict(had), Counter(str(state.name) for state in states.values() if state), done.stdout, done.stderr)
    assert max(max(noted.values()) for noted in ran.values()) == 1, "nothing has run twice"
    for run_id, state in states.items():
        assert state is not None
        if state.type is StateType.COMPLETED:
            assert ran[run_id] == DONE, run_id
        else:
            print(run_id, state.name, state.message)
    with site.ledger() as ledger:
        tasks = check_ledger(ledger, [str(run_id) for run_id in ran], "soak")
    of_runs = Counter(task.key.run_id for task in tasks)
    assert {str(run_id): sum(noted.values()) for run_id, noted in ran.items()} == of_runs, "each try has one record"
    assert ours_raised(log.read_text(errors="replace") for log in site.folder.glob("*.log")) == []


def _states(ids: list[UUID]) -> dict[UUID, State[object] | None]:
    parts = [ids[at : at + 200] for at in range(0, len(ids), 200)]  # no more are told at once
    return {run.id: run.state for part in parts for run in read(part)}


def _all_ended(ids: list[UUID]) -> bool:
    states = _states(ids)
    return len(states) == len(ids) and all(state is not None and state.type in FINAL for state in states.values())


def _open(site: Soaked) -> int:
    with site.ledger() as ledger:
        return len(DeferralStore(ledger).open())


def _ran(site: Soaked, run_id: UUID) -> bool:
    return (site.folder / "ran" / str(run_id)).exists()
