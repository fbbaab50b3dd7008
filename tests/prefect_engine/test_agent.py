"""Prefect tasks on a host with a node agent: nothing waits for it that is the user's, and nothing it tells is lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import artifacts_of, burn, only_run, ref, tasks_of

from tao_flows import tao_flow, tao_task
from tao_flows.agent.wire import AgentFigure, Begin, End, FigureDomain, Hello
from tao_flows.ledger.base import Ledger
from tao_flows.prefect.flow_run import energy_of
from tao_flows.prefect.settle import MOST_WAITING, Settler

PACKAGE = {"id": "package-0", "kind": "package", "source": "rapl", "counted": True}


def told(energy_uj: int, **lines: int) -> AgentFigure:
    domain = FigureDomain("package-0", energy_uj, energy_uj, energy_uj, "attributed", **lines)
    return AgentFigure(1_000_000_000, 40_000_000, "ebpf", lower_bound=False, domains=(domain,))


@pytest.fixture
def asked(agent: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An agent of which this process is an ordinary client."""
    monkeypatch.setenv("TAO_FLOWS_AGENT", str(agent.path))
    agent.hello |= {"domains": [PACKAGE], "privileged": False}
    return agent


def late(agent: Any, after_s: float, figure: Callable[[End], AgentFigure]) -> None:
    """Has ends answered that much later, on a thread of their own."""
    import threading

    def hold(end: End) -> None:
        def answer() -> None:
            connection = next(connection for connection, held in agent.held if held is end)
            agent.tell(connection, end, figure(end))

        threading.Timer(after_s, answer).start()

    agent.figure = hold


def test_a_task_does_not_wait_for_its_figure_and_its_record_has_it_in_the_end(asked: Any, ledger: Ledger) -> None:
    late(asked, 0.6, lambda _: told(7_000_000))
    took_s, seen = [], []

    @tao_task
    def work() -> None:
        burn(0.02)

    @tao_flow
    def flow() -> float | None:
        started_s = time.monotonic()
        state = work(return_state=True)
        took_s.append(time.monotonic() - started_s)
        seen.extend(tasks_of(ledger, "work"))
        return energy_of(state.state_details.task_run_id).value_j

    assert flow() == 7.0
    assert took_s[0] < 0.6 or not seen[0].measurement.pending
    assert seen[0].measurement.pending
    assert seen[0].measurement.energy.value_uj is None
    assert seen[0].measurement.cpu_s >= 0.015
    (record,) = tasks_of(ledger, "work")
    assert not record.measurement.pending
    assert record.measurement.energy.value_j == 7.0
    assert record.measurement.cpu.source == "ebpf"
    assert asked.of(Hello)[0].role == "engine"


def test_the_account_and_the_report_wait_for_what_is_about_to_be_told(asked: Any, ledger: Ledger) -> None:
    kinds = lambda end: next(b.kind for n, b in enumerate(asked.of(Begin), 1) if f"w{n}" == end.window)  # noqa: E731
    late(asked, 0.5, lambda end: told(2_000_000, overhead_uj=300_000) if kinds(end) == "process" else told(7_000_000))

    @tao_task
    def work() -> None:
        burn(0.02)

    @tao_flow
    def flow() -> None:
        burn(0.02)
        for future in [work.submit() for _ in range(3)]:
            future.wait()

    flow()
    run = only_run(ledger)
    (account,) = ledger.accounts(ref(run))
    assert account.account.tasks_uj == 23_000_000  # three tasks' and the flow's own
    assert account.account.overhead_uj == 300_000
    assert account.account.counter_uj is None
    assert account.body.value_uj == 2_000_000
    page = artifacts_of(run.run_id)["tao-energy-flow"][-1]
    assert "**21.0 J**, attributed, for 3 task tries" in page
    process = next(each for each in asked.of(Begin) if each.kind == "process")
    end = next(each for each in asked.of(End) if each.window == f"w{asked.of(Begin).index(process) + 1}")
    assert end.cpu_ns >= 20_000_000


def test_sync_tasks_are_threads_and_stepped_ones_are_told_by_their_steps(asked: Any, ledger: Ledger) -> None:
    asked.figure = lambda _: told(1)

    @tao_task
    def threaded() -> None:
        burn(0.01)

    @tao_task
    async def stepped() -> None:
        await asyncio.sleep(0)
        burn(0.02)

    @tao_flow
    async def flow() -> None:
        threaded()
        await stepped()

    asyncio.run(flow())
    begun = {begin.label: (f"w{number}", begin) for number, begin in enumerate(asked.of(Begin), 1)}
    ends = {end.window: end for end in asked.of(End)}
    assert begun["threaded"][1].kind == "thread"
    assert begun["threaded"][1].tid is not None
    assert ends[begun["threaded"][0]].cpu_ns is None
    assert begun["stepped"][1].kind == "steps"
    assert 20_000_000 <= ends[begun["stepped"][0]].cpu_ns < 1_000_000_000


def test_a_process_that_ends_with_its_task_loses_nothing(asked: Any, ledger: Ledger, tmp_path: Path) -> None:
    late(asked, 1.0, lambda _: told(7_000_000))
    script = tmp_path / "one.py"
    script.write_text("from tao_flows import tao_task\n@tao_task\ndef work():\n    pass\nwork()\n")
    subprocess.run([sys.executable, script], check=True, env=os.environ.copy(), timeout=120)
    (record,) = tasks_of(ledger, "work")
    assert record.measurement.energy.value_j == 7.0


def test_an_agent_that_is_killed_midway_fails_no_task(asked: Any, ledger: Ledger) -> None:
    asked.figure = lambda _: None

    @tao_task
    def work() -> int:
        asked.stop()
        return 7

    @tao_flow
    def flow() -> int:
        return work()

    assert flow() == 7
    (record,) = tasks_of(ledger, "work")
    assert str(record.state) == "completed"
    assert record.measurement.energy.value_uj is None
    assert record.measurement.cpu_s is not None
    assert "AGENT_LOST" in record.measurement.events


def test_what_is_left_to_do_is_done_in_order_and_by_one_thread() -> None:
    settler, done = Settler(), []
    import threading

    gate = threading.Event()
    settler.later(lambda: gate.wait(10))
    for number in range(5):
        settler.later(lambda number=number: done.append((number, threading.current_thread().name)))
    assert done == []
    gate.set()
    until_s = time.monotonic() + 10
    while len(done) < 5 and time.monotonic() < until_s:
        time.sleep(0.01)
    assert done == [(number, "tao-flows-settler") for number in range(5)]


def test_more_than_can_be_kept_is_done_at_once() -> None:
    import threading

    settler, gate, done = Settler(), threading.Event(), []
    settler.later(lambda: gate.wait(10))
    for number in range(MOST_WAITING + 2):
        settler.later(lambda number=number: done.append(number))
    assert done  # by this thread
    gate.set()
    until_s = time.monotonic() + 10
    while len(done) < MOST_WAITING + 2 and time.monotonic() < until_s:
        time.sleep(0.01)
    assert sorted(done) == list(range(MOST_WAITING + 2))


def test_the_ledger_keeps_the_complete_record_whatever_comes_last(asked: Any, ledger: Ledger) -> None:
    late(asked, 0.3, lambda _: told(7_000_000))
    seen = []

    @tao_task
    def work() -> None:
        pass

    @tao_flow
    def flow() -> None:
        work()
        seen.extend(tasks_of(ledger, "work"))

    flow()
    (complete,) = tasks_of(ledger, "work")
    (pending,) = seen
    assert pending.measurement.pending
    ledger.put_task(pending)
    assert tasks_of(ledger, "work") == [complete]
    assert json.dumps(complete.measurement.energy.to_json())
