"""Processes that admit against one budget, some of them killed with SIGKILL: what the ledger then holds."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tao_flows.budget import EnergyBudget
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import BudgetStore, Claim
from tao_flows.units import uj_from_j

pytestmark = pytest.mark.slow

J = 1_000_000
DRIVER = Path(__file__).with_name("_budget_driver.py")
PROCESSES = 8
KILLS = 4
SETTLED = 60
SAMPLES = 50
GIVE_UP_S = 240
LEASE_S = 0.5
# So short a window that its joules come back while the test looks on; and one that fills up for good.
SOME = EnergyBudget("some", 20.0, 0.5, ceiling_j=25.0)
CEILING_UJ = 25 * J
ALL = EnergyBudget("all", 100.0, ceiling_j=10_000.0)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = open_ledger(url)
    yield opened
    opened.close()


class Crowd:
    """Drivers that are started, killed and started again."""

    def __init__(self, url: str, acknowledged: Path) -> None:
        self._arguments = (url, acknowledged)
        self._started = 0
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        url, acknowledged = self._arguments
        command = [sys.executable, str(DRIVER), url, f"process-{self._started}", str(acknowledged)]
        self._started += 1
        self.running.append(subprocess.Popen(command, stdout=subprocess.PIPE))

    def wait_ready(self) -> None:
        for process in self.running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        self.running.remove(process)
        assert process.poll() is None, "it ended by itself"
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def kill_all(self) -> None:
        for process in list(self.running):
            self.kill(process)


def open_uj(ledger: Ledger, budget: EnergyBudget) -> int:
    """Spent in the window and reserved, from the charges themselves and in one statement."""
    statement = """SELECT (SELECT coalesce(sum(amount_uj), 0) FROM charges
            WHERE budget = :name AND charged_wall_ns > :since)
        + (SELECT coalesce(sum(amount_uj), 0) FROM reservations WHERE budget = :name AND lease_until_wall_ns > :now)"""
    with ledger.transaction(write=False) as tx:
        tx.execute("SELECT 1 FROM budgets")  # what is read is of this moment; an earlier time would not fit it
        now_ns = tx.now_ns()
        since_ns = now_ns - round(budget.window_s * 1e9)
        return int(tx.execute(statement, name=budget.name, since=since_ns, now=now_ns)[0][0])


def test_no_ceiling_is_ever_passed_leases_come_back_and_every_settled_joule_is_charged_once(
    ledger: Ledger, url: str, tmp_path: Path
) -> None:
    store, acknowledged, chosen = BudgetStore(ledger), tmp_path / "acknowledged", random.Random(1)
    for budget in (SOME, ALL):
        store.put(budget)
    crowd = Crowd(url, acknowledged)
    try:
        for _ in range(PROCESSES):
            crowd.start()
        crowd.wait_ready()
        samples = most_uj = killed = 0
        give_up_s = time.monotonic() + GIVE_UP_S
        kill_s = time.monotonic() + 0.3
        while (
            samples < SAMPLES or killed < KILLS or most_uj < 0.8 * CEILING_UJ or len(known_in(acknowledged)) < SETTLED
        ):
            assert time.monotonic() < give_up_s, (samples, killed, most_uj)
            for standing in store.standings(["some", "all"]):
                assert standing.spent_uj + standing.reserved_uj <= uj_from_j(standing.budget.ceiling_j or 0)
            most_uj = max(most_uj, open_uj(ledger, SOME))
            assert most_uj <= CEILING_UJ
            assert open_uj(ledger, ALL) <= uj_from_j(ALL.ceiling_j or 0)
            samples += 1
            if killed < KILLS and time.monotonic() > kill_s:
                crowd.kill(chosen.choice(crowd.running))
                crowd.start()
                killed += 1
                kill_s = time.monotonic() + 0.3 + chosen.random() * 0.3
    finally:
        crowd.kill_all()
    check_charges(ledger, store, acknowledged, killed + PROCESSES)
    check_leases_come_back(store)


def known_in(acknowledged: Path) -> dict[str, int]:
    """By holder, the microjoules that a process knows it has settled."""
    lines = acknowledged.read_text().splitlines() if acknowledged.exists() else []
    return {holder: int(used_uj) for holder, used_uj in (line.split() for line in lines)}


def check_charges(ledger: Ledger, store: BudgetStore, acknowledged: Path, kills: int) -> None:
    known = known_in(acknowledged)
    with ledger.transaction(write=False) as tx:
        charged = dict(tx.execute("SELECT holder, amount_uj FROM charges WHERE budget = 'all'"))
        total = tx.execute("SELECT budget, sum(spent_uj) FROM spending GROUP BY budget ORDER BY budget")
    assert {holder: charged[holder] for holder in known} == known
    # A process can be killed between its commit and its note, once.
    assert len(charged) - len(known) <= kills
    assert [(name, int(uj)) for name, uj in total] == [(name, sum(charged.values())) for name in ("all", "some")]
    assert store.standings(["all"])[0].spent_uj == sum(charged.values())


def check_leases_come_back(store: BudgetStore) -> None:
    give_up_s = time.monotonic() + LEASE_S + 30
    while store.standings(["all"])[0].reserved_uj:
        assert time.monotonic() < give_up_s
        time.sleep(0.02)
    (standing,) = store.standings(["all"])
    rest_uj = 10_000 * J - standing.spent_uj
    assert store.reserve("the rest", [Claim("all", rest_uj)], 60).granted
    assert not store.reserve("more", [Claim("all", 1)], 60).granted
