"""Tasks side by side in one flow process: each is charged for its own CPU seconds and joules, and for what it starts."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import burn, tasks_of
from threadpoolctl import threadpool_limits

from tao_flows import tao_flow, tao_task
from tao_flows.codeclock import CodeClock
from tao_flows.errors import SourceError
from tao_flows.ledger.base import Ledger
from tao_flows.prefect.engine_cpu import EngineCpu
from tao_flows.telemetry.perf import TaskClock
from tao_flows.telemetry.procfs import PROC_ROOT

FLOWS = Path(__file__).parent / "flows"
J_PER_CPU_S = 10.0


def has_perf() -> bool:
    try:
        TaskClock().close()
    except SourceError:
        return False
    return True


needs_perf = pytest.mark.skipif(not has_perf(), reason="perf events are refused here")


@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_ten_tasks_in_one_flow_each_get_their_true_share_of_cpu_time_and_joules(
    ledger: Ledger, run_powered: Callable[..., str], kind: str
) -> None:
    printed = run_powered(sys.executable, str(FLOWS / "shares.py"), kind)
    (line,) = [line for line in printed.splitlines() if line.startswith("truth ")]
    truth_s = json.loads(line.removeprefix("truth "))
    measured = {task.task_label: task.measurement for task in tasks_of(ledger)}
    assert measured.keys() == truth_s.keys()
    cpu_s = {label: m.cpu_s for label, m in measured.items()}
    energy_j = {label: m.energy.value_j for label, m in measured.items()}
    true_shares = shares(truth_s)
    assert len(true_shares) == 10
    assert shares(cpu_s) == pytest.approx(true_shares, rel=0.05)
    assert shares(energy_j) == pytest.approx(true_shares, rel=0.05)
    assert sum(energy_j.values()) == pytest.approx(sum(truth_s.values()) * J_PER_CPU_S, rel=0.05)


def shares(of: dict[str, float]) -> dict[str, float]:
    whole = sum(of.values())
    return {name: part / whole for name, part in of.items()}


@needs_perf
def test_a_task_that_submits_tasks_is_not_charged_for_the_threads_they_run_on(ledger: Ledger) -> None:
    @tao_task
    def inner(cpu_s: float) -> float:
        return burn(cpu_s)

    @tao_task
    def outer() -> float:
        futures = inner.map([0.3, 0.3, 0.3])
        spent_s = burn(0.2)
        futures.wait()
        return spent_s + inner.submit(0.3).result() * 0

    @tao_flow
    def main() -> None:
        outer.submit().wait()

    main()
    (charged,) = tasks_of(ledger, "outer")
    assert charged.measurement is not None
    assert charged.measurement.cpu.source == "perf"
    # The engine's part of four submissions is not the task's either.
    assert charged.measurement.cpu_s == pytest.approx(0.2, rel=0.1, abs=0.05)
    inners = [task.measurement.cpu_s for task in tasks_of(ledger, "inner") if task.measurement]
    assert inners == pytest.approx([0.3] * 4, rel=0.05, abs=0.02)


@needs_perf
def test_a_task_is_charged_for_the_process_pool_it_makes(ledger: Ledger) -> None:
    @tao_task
    def work() -> None:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(burn, [0.3, 0.3]))

    @tao_flow
    def main() -> None:
        work.submit().wait()

    before = os.times()
    main()
    after = os.times()
    children_s = sum(after[2:4]) - sum(before[2:4])
    (charged,) = tasks_of(ledger)
    assert charged.measurement is not None
    assert charged.measurement.cpu.covers_children
    assert children_s >= 0.6
    assert charged.measurement.cpu_s == pytest.approx(children_s, rel=0.1, abs=0.05)


@pytest.fixture
def blas() -> Iterator[None]:
    """A numerical library whose pool has one thread that is not Python's, and is there before any task."""
    with threadpool_limits(limits=2, user_api="blas"):
        multiply(own_s=0.05)
        yield


def multiply(own_s: float = 0.0, others_s: float = 0.0) -> tuple[float, float]:
    """Multiplies matrices until this thread and the process's others have used so much CPU; gives how much it was."""
    matrix = np.ones((600, 600))
    thread_s, process_s = time.thread_time(), time.process_time()
    while True:
        matrix @ matrix
        spent_s = time.thread_time() - thread_s
        beside_s = time.process_time() - process_s - spent_s
        if spent_s >= own_s and beside_s >= others_s:
            return spent_s, beside_s


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_tasks_one_after_another_are_each_charged_for_the_pool_of_threads_that_served_them(
    ledger: Ledger, kind: str
) -> None:
    used: dict[str, tuple[float, float]] = {}

    def work(name: str) -> None:
        used[name] = multiply(others_s=0.3)

    if kind == "sync":
        metered = tao_task(work, task_run_name="{name}")

        @tao_flow
        def main() -> None:
            metered("first")
            metered("second")

        main()
    else:

        @tao_task(task_run_name="{name}")
        async def stepped(name: str) -> None:
            work(name)

        @tao_flow
        async def main() -> None:
            await stepped("first")
            await stepped("second")

        asyncio.run(main())
    for task in tasks_of(ledger):
        thread_s, pool_s = used[task.task_label]
        assert task.measurement is not None
        assert task.measurement.cpu.source.endswith("+native-threads")
        assert task.measurement.cpu_s == pytest.approx(thread_s + pool_s, rel=0.05, abs=0.03)


@pytest.mark.usefixtures("blas")
def test_a_pool_that_serves_tasks_side_by_side_is_charged_to_none_of_them(ledger: Ledger) -> None:
    together = threading.Barrier(2)

    @tao_task
    def work() -> float:
        together.wait()
        thread_s, _ = multiply(own_s=0.5)
        together.wait()
        return thread_s

    @tao_flow
    def main() -> list[float]:
        return [future.result() for future in (work.submit(), work.submit())]

    threads_s = sorted(main())
    charged_s = sorted(task.measurement.cpu_s or 0 for task in tasks_of(ledger) if task.measurement)
    assert charged_s == pytest.approx(threads_s, rel=0.1, abs=0.03)


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize("charged", [True, False])
def test_the_engine_is_never_charged_for_a_pool_nor_the_less_for_one_that_a_task_is_charged_for(charged: bool) -> None:
    before = EngineCpu.read(PROC_ROOT)
    clock = CodeClock(stepped=True, alone=charged)
    with clock.span:
        thread_s, pool_s = multiply(others_s=0.3)
    cpu_s = clock.stop(alone=charged).cpu_s
    spent = EngineCpu.read(PROC_ROOT).since(before)
    assert cpu_s == pytest.approx(thread_s + (pool_s if charged else 0), rel=0.05, abs=0.02)
    assert spent.native_s == pytest.approx(0 if charged else pool_s, abs=0.05)
    engine_s = spent.overhead_s(known_s=cpu_s, children_known=False) - spent.others_s
    assert engine_s == pytest.approx(0, abs=0.05)
