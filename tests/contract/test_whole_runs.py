"""What earlier runs of a flow took as a whole, on both databases, against sums made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tao_flows.figures import METHOD, Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger, whole
from tao_flows.ledger.base import Ledger, Settled
from tao_flows.ledger.whole import history_of_flow
from tao_flows.profiles import Profiles
from tao_flows.records import UNSEEN_RUN, RunKey, RunRecord, Segment, TaskRecord, TaskState

S = 1_000_000_000
T0 = 1_790_000_000 * S
SEGMENT = Segment("node-1", "boot", 1, 1)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else str(tmp_path / "l.db")
    opened = open_ledger(url)
    yield opened
    opened.close()


def put_task(
    ledger: Ledger,
    run_id: str,
    name: str,
    energy_uj: int | None,
    begin_s: int,
    *,
    pool: str = "home",
    state: TaskState = TaskState.COMPLETED,
    flow: str = "nightly",
    method: str = METHOD,
) -> None:
    """A task of ten seconds."""
    figure = Figure.unknown(name) if energy_uj is None else Figure(energy_uj, 0, energy_uj, Quality.MEASURED, ("rapl",))
    measured = Measurement(
        name, T0, 1.0, CpuTime(0.5, "perf", covers_children=True), figure, (), Account(), method=method
    )
    at = T0 + begin_s * S
    record = TaskRecord(
        RunKey("prefect", "default", flow, run_id, name, name, 1), SEGMENT, state, at, pool=pool,
        ended_wall_ns=None if state is TaskState.RUNNING else at + 10 * S,
        measurement=None if state is TaskState.RUNNING else measured,
    )  # fmt: skip
    ledger.put_task(record)


def put_run(ledger: Ledger, run_id: str, begin_s: int, took_s: int | None, state: str = "completed") -> None:
    at = T0 + begin_s * S
    ended = None if took_s is None else at + took_s * S
    ledger.put_run(RunRecord("prefect", "default", "nightly", run_id, state, at, SEGMENT, ended_wall_ns=ended))


def settled(energy_uj: int | None, runtime_s: float, begin_s: int) -> Settled:
    return Settled(energy_uj, runtime_s, None, T0 + begin_s * S)


def test_a_runs_energy_is_the_sum_of_its_tasks_and_its_runtime_its_own(ledger: Ledger) -> None:
    for number in range(3):
        put_run(ledger, f"r{number}", number * 100, 60 + number)
        put_task(ledger, f"r{number}", "a", 1_000, number * 100 + 5)
        put_task(ledger, f"r{number}", "b", 500 * number, number * 100 + 20)
    assert history_of_flow(ledger, "nightly", "home").runs == (
        settled(2_000, 62.0, 200), settled(1_500, 61.0, 100), settled(1_000, 60.0, 0),
    )  # fmt: skip
    assert history_of_flow(ledger, "nightly", "home", 1).runs == (settled(2_000, 62.0, 200),)
    assert history_of_flow(ledger, "hourly", "home").runs == ()


def test_runs_count_where_all_of_their_tasks_ran_and_only_if_they_ended_well(ledger: Ledger) -> None:
    for number, pools in enumerate((("home", "home"), ("green", "green"), ("home", "green"), ("green", "home"))):
        put_run(ledger, f"r{number}", number * 100, 60)
        for name, pool in zip("ab", pools, strict=True):
            put_task(ledger, f"r{number}", name, 1_000 * (number + 1), number * 100, pool=pool)
    for number, state in enumerate(("failed", "running", "crashed"), start=4):
        put_run(ledger, f"r{number}", number * 100, None if state == "running" else 60, state)
        put_task(ledger, f"r{number}", "a", 7, number * 100)
    assert history_of_flow(ledger, "nightly", "home").runs == (settled(2_000, 60.0, 0),)
    assert history_of_flow(ledger, "nightly", "green").runs == (settled(4_000, 60.0, 100),)


def test_an_energy_that_lacks_a_part_or_is_of_another_method_is_unknown_and_not_understated(ledger: Ledger) -> None:
    put_run(ledger, "r0", 0, 60)
    put_task(ledger, "r0", "a", 1_000, 0)
    put_task(ledger, "r0", "b", None, 20)
    put_run(ledger, "r1", 100, 60)
    put_task(ledger, "r1", "a", 1_000, 100, method="another/0")
    assert history_of_flow(ledger, "nightly", "home").runs == (settled(None, 60.0, 100), settled(None, 60.0, 0))


def test_a_run_that_is_known_by_its_tasks_alone_counts_when_all_of_them_have_completed(ledger: Ledger) -> None:
    put_run(ledger, "r0", 0, None, UNSEEN_RUN)
    put_task(ledger, "r0", "a", 1_000, 5)
    put_task(ledger, "r0", "b", 500, 40)
    put_run(ledger, "r1", 100, None, UNSEEN_RUN)
    put_task(ledger, "r1", "a", 1_000, 100)
    put_task(ledger, "r1", "b", None, 120, state=TaskState.RUNNING)
    assert history_of_flow(ledger, "nightly", "home").runs == (settled(1_500, 45.0, 5),)


def test_a_whole_run_is_predicted_from_earlier_ones_by_pool(ledger: Ledger) -> None:
    key = RunKey("prefect", "default", "nightly", "next", "", "", 1)
    for number in range(4):
        put_run(ledger, f"r{number}", number * 100, 60)
        put_task(ledger, f"r{number}", "a", 30_000_000, number * 100)
        put_task(ledger, f"r{number}", "b", 10_000_000, number * 100 + 20)
    profiles = Profiles(ledger)
    expected = profiles.of(key.task, "home", 0, flow=key.task_flow)
    assert expected.energy_j is not None
    assert expected.runtime_s is not None
    assert (expected.energy_j.mean, expected.runtime_s.p50) == (40.0, 60.0)
    assert profiles.of("a", "home", 0).energy_j != expected.energy_j
    assert profiles.of("", "home", 0, flow="hourly").energy is None


def test_other_flows_tasks_are_not_read_for_it(tmp_path: Path) -> None:
    with closing(open_ledger(str(tmp_path / "l.db"))) as ledger, ledger.transaction(write=False) as tx:
        named = {"flow": "nightly", "pool": "home", "looked": whole.LOOKED, "limit": whole.RECENT}
        plan = [row[-1] for row in tx.execute(f"EXPLAIN QUERY PLAN {whole._HISTORY}", **named)]
    reads = [step for step in plan if "task" in step or "runs" in step]
    assert reads
    assert not [step for step in reads if step.startswith("SCAN") and ("task" in step or "runs" in step)], plan
