"""Code side by side in one process: each piece is charged for its own, and no CPU second is charged twice."""

from __future__ import annotations

import _thread
import asyncio
import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tao_flows import measure, runtime
from tao_flows.codeclock import CodeClock, charged_natives
from tao_flows.errors import InputError, SourceError
from tao_flows.telemetry.perf import TaskClock
from tao_flows.telemetry.threads import native_threads

DRIVER = Path(__file__).parent / "_shares_driver.py"
J_PER_CPU_S = 10.0
"""What a busy CPU second costs on the host of ``run_powered``."""
BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"
POOL_C = """
#include <time.h>

static double cpu_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* Burns so much on each of the pool's threads, the caller's among them. */
void work(double each_s) {
    #pragma omp parallel num_threads(2)
    {
        double end_s = cpu_s() + each_s;
        while (cpu_s() < end_s) {}
    }
}
"""


def has_perf() -> bool:
    try:
        TaskClock().close()
    except SourceError:
        return False
    return True


needs_perf = pytest.mark.skipif(not has_perf(), reason="perf events are refused here")


def burn(cpu_s: float) -> float:
    started_s = time.thread_time()
    while (spent_s := time.thread_time() - started_s) < cpu_s:
        pass
    return spent_s


@pytest.fixture(autouse=True)
def _estimate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No counters: CPU seconds are what these tests are about."""
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "estimate")
    runtime.forget()
    yield
    tao = runtime.current()
    if tao is not None:
        tao.meter.close()
        tao.ledger.close()
    runtime.forget()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], None]:
    """An OpenMP library whose pool of one further thread is there before any test."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the OpenMP library cannot be built")
    folder = tmp_path_factory.mktemp("pool")
    (folder / "pool.c").write_text(POOL_C)
    command = ["gcc", "-O1", "-shared", "-fPIC", "-fopenmp", "-o", folder / "pool.so", folder / "pool.c"]
    subprocess.run(command, check=True)
    # A pool that spins while it waits would be charged for that too.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    work = ctypes.CDLL(str(folder / "pool.so")).work
    work.argtypes, work.restype = (ctypes.c_double,), None
    work(0.001)
    return work


@pytest.mark.parametrize("kind", ["coroutines", "threads", pytest.param("families", marks=needs_perf)])
def test_ten_pieces_side_by_side_each_get_their_true_share_of_cpu_time_and_joules(
    run_powered: Callable[..., str], kind: str
) -> None:
    """A family is a thread, a thread that it starts and a process that it starts."""
    printed = json.loads(run_powered(sys.executable, str(DRIVER), kind))
    rows = printed["rows"]
    truths_s = [row["truth_s"] for row in rows]
    cpus_s = [row["cpu_s"] for row in rows]
    energies_j = [row["energy_j"] for row in rows]
    assert len(rows) == 10
    assert shares(cpus_s) == pytest.approx(shares(truths_s), rel=0.05)
    assert shares(energies_j) == pytest.approx(shares(truths_s), rel=0.05)
    assert sum(energies_j) == pytest.approx(sum(truths_s) * J_PER_CPU_S, rel=0.05)
    assert sum(cpus_s) <= printed["process_s"] + 0.05, "no CPU second is charged twice"
    if kind == "families":
        assert all(row["covers_children"] for row in rows)


def shares(of: list[float]) -> list[float]:
    return [part / sum(of) for part in of]


def test_a_coroutine_is_measured_from_its_first_step_to_its_last_and_gives_what_it_would() -> None:
    m, failing = measure("a"), measure("b")

    async def work(fails: bool) -> str:
        burn(0.05)
        await asyncio.sleep(0.05)
        if fails:
            raise KeyError("theirs")
        return "done"

    async def main() -> None:
        steps = m.of(work(fails=False))
        with pytest.raises(InputError, match="has not ended"):
            _ = m.energy
        await asyncio.sleep(0.05)
        assert await steps == "done"
        with pytest.raises(KeyError, match="theirs"):
            await failing.of(work(fails=True))

    asyncio.run(main())
    for each in (m, failing):
        assert each.measurement.cpu.source == "thread-clock-steps"
        assert not each.measurement.cpu.covers_children
        assert each.cpu_s == pytest.approx(0.05, rel=0.1, abs=0.01)
        assert each.energy.value_uj is not None
        assert each.energy.value_uj > 0
    assert 0.1 <= m.wall_s < 0.15 + 1, "what it waited before it was awaited is not in it"


def test_a_coroutine_inside_another_takes_its_seconds_out_of_the_outer_one() -> None:
    outer, inner = measure("outer"), measure("inner")

    async def leaf() -> None:
        burn(0.2)

    async def work() -> None:
        burn(0.1)
        await inner.of(leaf())

    asyncio.run(outer.of(work()))
    assert inner.cpu_s == pytest.approx(0.2, rel=0.05, abs=0.01)
    assert outer.cpu_s == pytest.approx(0.1, rel=0.05, abs=0.01)


def test_generators_that_take_turns_are_each_charged_for_their_own_steps() -> None:
    def numbers(cpu_s: float) -> Generator[int, int, str]:
        got = 0
        for _ in range(3):
            burn(cpu_s)
            got = yield got + 1
        return "result"

    small, large = measure("small"), measure("large")
    first, second = small.of(numbers(0.02)), large.of(numbers(0.06))
    assert (next(first), next(second)) == (1, 1)
    burn(0.1)
    assert (first.send(10), second.send(20)) == (11, 21)
    burn(0.1)
    results = []
    for steps in (first, second):
        try:
            while True:
                steps.send(0)
        except StopIteration as stop:
            results.append(stop.value)
    assert results == ["result", "result"]
    assert small.cpu_s == pytest.approx(0.06, rel=0.1, abs=0.01)
    assert large.cpu_s == pytest.approx(0.18, rel=0.1, abs=0.01)


def test_a_generator_that_is_left_early_is_measured_up_to_there() -> None:
    def endless() -> Generator[None, None, None]:
        while True:
            burn(0.03)
            yield

    m = measure()
    steps = m.of(endless())
    next(steps)
    steps.close()
    assert m.cpu_s == pytest.approx(0.03, rel=0.1, abs=0.01)


@pytest.mark.parametrize("work", [object(), 3, print])
def test_what_has_no_steps_to_time_is_refused_with_the_reason(work: Any) -> None:
    with pytest.raises(InputError, match="neither a coroutine nor a generator") as caught:
        measure().of(work)
    assert caught.value.code == "NOT_STEPPABLE"
    assert caught.value.remedy


def test_in_mode_off_a_coroutine_runs_as_it_would_and_its_figures_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_MODE", "off")

    async def work() -> str:
        return "done"

    m = measure()
    assert asyncio.run(m.of(work())) == "done"
    assert m.energy.unknown_parts == ("MODE_OFF",)
    assert m.cpu_s is None


POOL_IN_BLOCK = """
import json, time
from concurrent.futures import ThreadPoolExecutor
from tao_flows import measure

def burn(cpu_s):
    end = time.thread_time() + cpu_s
    while time.thread_time() < end: pass

def one(cpu_s):
    with measure() as m:
        burn(cpu_s)
    return m

with measure() as outer:
    with ThreadPoolExecutor(2) as pool:
        inner = list(pool.map(one, [0.2, 0.3]))
    burn(0.1)
print(json.dumps([outer.cpu_s, outer.measurement.cpu.source, [m.cpu_s for m in inner]]))
"""


def test_a_block_has_the_blocks_on_threads_that_it_started_in_it() -> None:
    run = subprocess.run([sys.executable, "-c", POOL_IN_BLOCK], capture_output=True, text=True, timeout=60, check=True)
    outer_s, source, inner_s = json.loads(run.stdout)
    assert source == "process-clock+wait4"
    assert inner_s == pytest.approx([0.2, 0.3], rel=0.05, abs=0.02)
    assert outer_s == pytest.approx(0.6, rel=0.1, abs=0.05)


@needs_perf
def test_a_block_is_not_charged_for_a_block_on_a_thread_that_was_there_before() -> None:
    begun, done = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()

        def other() -> measure:
            with measure("other") as m:
                begun.set()
                burn(0.3)
            done.set()
            return m

        with measure("first") as first:
            future = pool.submit(other)
            begun.wait()
            burn(0.1)
            done.wait()
        beside = future.result()
    assert first.measurement.cpu.source == beside.measurement.cpu.source == "perf"
    assert first.measurement.cpu.covers_children
    assert first.cpu_s == pytest.approx(0.1, rel=0.1, abs=0.02)
    assert beside.cpu_s == pytest.approx(0.3, rel=0.05, abs=0.02)


@needs_perf
def test_blocks_side_by_side_are_each_charged_for_the_process_pool_they_make() -> None:
    blocks: dict[float, measure] = {}

    def work(cpu_s: float) -> None:
        with measure() as m:
            together.wait()
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                pool.submit(exec, BURN.format(cpu_s)).result()
        blocks[cpu_s] = m

    together = threading.Barrier(2)
    before = os.times()
    threads = [threading.Thread(target=work, args=(cpu_s,)) for cpu_s in (0.2, 0.8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = os.times()
    used_s = sum(after[:4]) - sum(before[:4])
    assert sum(m.cpu_s or 0 for m in blocks.values()) == pytest.approx(used_s, rel=0.1, abs=0.05)
    # What a pool's process takes to start up is its own too, and the same for both.
    assert (blocks[0.8].cpu_s or 0) - (blocks[0.2].cpu_s or 0) == pytest.approx(0.6, rel=0.1, abs=0.1)


def test_threads_of_python_are_no_native_threads_and_a_librarys_are(pool: Callable[[float], None]) -> None:
    there = native_threads()
    assert there
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    started = {thread.native_id for thread in threads}
    assert not started & native_threads().keys()
    end.set()
    for thread in threads:
        thread.join()
    before_s = sum(native_threads().values())
    pool(0.1)
    assert sum(native_threads().values()) - before_s == pytest.approx(0.1, rel=0.05, abs=0.01)


@pytest.mark.parametrize("stepped", [True, pytest.param(False, marks=needs_perf)])
def test_code_alone_is_charged_for_the_pool_that_was_there_before_and_once(
    pool: Callable[[float], None], stepped: bool
) -> None:
    for _ in range(2):
        charged_s = charged_natives.cpu_s
        clock = CodeClock(stepped=stepped, alone=True)
        with clock.span:
            pool(0.2)
        cpu = clock.stop(alone=True)
        assert cpu.cpu_s == pytest.approx(0.4, rel=0.05, abs=0.02)
        assert cpu.source.endswith("+native-threads")
        assert charged_natives.cpu_s - charged_s == pytest.approx(0.2, rel=0.05, abs=0.01)


@pytest.mark.parametrize(("at_begin", "at_end"), [(False, True), (True, False), (False, False)])
def test_a_pool_is_nobodys_when_others_were_beside_at_any_time(
    pool: Callable[[float], None], at_begin: bool, at_end: bool
) -> None:
    charged_s = charged_natives.cpu_s
    clock = CodeClock(stepped=True, alone=at_begin)
    with clock.span:
        pool(0.1)
    cpu = clock.stop(alone=at_end)
    assert cpu.cpu_s == pytest.approx(0.1, rel=0.05, abs=0.01)
    assert cpu.source == "thread-clock-steps"
    assert charged_natives.cpu_s == charged_s


def test_coroutines_are_charged_for_a_pool_one_after_another_and_not_side_by_side(
    pool: Callable[[float], None],
) -> None:
    async def work() -> None:
        pool(0.1)
        await asyncio.sleep(0.01)

    def measured(number: int) -> tuple[list[measure], list[Coroutine[Any, Any, None]]]:
        blocks = [measure() for _ in range(number)]
        return blocks, [m.of(work()) for m in blocks]

    async def main() -> tuple[list[measure], list[measure]]:
        after, steps = measured(2)
        for step in steps:
            await step
        beside, steps = measured(2)
        await asyncio.gather(*steps)
        return after, beside

    after, beside = asyncio.run(main())
    assert [m.cpu_s for m in after] == pytest.approx([0.2, 0.2], rel=0.05, abs=0.02)
    assert [m.cpu_s for m in beside] == pytest.approx([0.1, 0.1], rel=0.05, abs=0.02)


@needs_perf
def test_a_pool_that_the_code_itself_starts_is_charged_to_it_once() -> None:
    """The pool is a thread that the threading module knows nothing of, as a library's."""
    clock = CodeClock(stepped=False, alone=True)
    charged_s = charged_natives.cpu_s
    with clock.span:
        done = _thread.allocate_lock()
        done.acquire()

        def run() -> None:
            burn(0.2)
            done.release()
            wait.acquire()

        wait = _thread.allocate_lock()
        wait.acquire()
        _thread.start_new_thread(run, ())
        done.acquire()
    cpu = clock.stop(alone=True)
    wait.release()
    assert cpu.covers_children
    assert cpu.cpu_s == pytest.approx(0.2, rel=0.1, abs=0.02)
    assert charged_natives.cpu_s - charged_s == pytest.approx(0.2, rel=0.1, abs=0.02)
