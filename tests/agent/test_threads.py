"""Several tasks in one process: threads, what they start, nested windows, steps, and the process's own part."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agent_support import NOBODY, Agent, Client, Host, assert_sums, burn, domain

from tao_flows.agent.wire import VERSION
from tao_flows.telemetry import ebpf
from tao_flows.units import NS_PER_S


@pytest.fixture(scope="module", params=["ebpf", "perf"])
def agent(request: pytest.FixtureRequest, directory: Path, host: Host) -> Iterator[Agent]:
    if request.param == "ebpf" and (found := ebpf.diagnose()).status != "ready":
        pytest.skip(f"{found.code}: {found.summary}")
    agent = Agent(directory / request.param, host, *(["--no-bpf"] if request.param == "perf" else []))
    with Client(agent.socket) as client:
        assert client.about["cpu_source"] == request.param
    yield agent
    agent.assert_well()
    agent.close()


def assert_counted(figure: dict, truth_s: float) -> None:
    assert_sums(figure)
    assert figure["cpu_ns"] / NS_PER_S == pytest.approx(truth_s, rel=0.05, abs=0.03)


def test_each_of_ten_threads_has_what_it_used(client):
    alone = threading.Lock()
    ready = threading.Barrier(10)

    def task(number: int) -> tuple[dict, float]:
        with alone:
            window = client.begin("thread", tid=threading.get_native_id())
        ready.wait()
        cpu_s = burn(0.03 * (number + 1))
        with alone:
            # Waiting for the lock is the thread's own too, and little.
            return client.end(window), cpu_s

    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(task, range(10)))
    for figure, cpu_s in done:
        assert_counted(figure, cpu_s)
    shares = [domain(figure)["task_uj"] for figure, _ in done]
    assert sum(shares) <= max(domain(figure)["counter_uj"] for figure, _ in done)


def test_what_a_thread_starts_counts_for_it_and_what_others_start_does_not(client):
    windows: list[dict] = []
    used_s: list[float] = []
    go = threading.Event()

    def task() -> None:
        windows.append(client.begin("thread", tid=threading.get_native_id()))
        go.wait()
        started_s = time.thread_time()
        inner = threading.Thread(target=lambda: used_s.append(burn(0.2)))
        inner.start()
        inner.join()
        pid = os.fork()
        if not pid:
            burn(0.2)
            os._exit(0)
        usage = os.wait4(pid, 0)[2]
        used_s.extend((usage.ru_utime + usage.ru_stime, time.thread_time() - started_s))

    thread = threading.Thread(target=task)
    thread.start()
    while not windows:
        time.sleep(0.001)
    go.set()
    bystander = threading.Thread(target=burn, args=(0.2,))
    bystander.start()
    thread.join()
    bystander.join()
    assert_counted(client.end(windows[0]), sum(used_s))


def test_a_client_that_a_thread_starts_is_in_its_figure_and_has_one_of_its_own(agent, client):
    window = client.begin("thread", tid=threading.get_native_id())
    told_apart = client.about["cpu_source"] == "ebpf"
    started_s = time.thread_time()
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with Client(agent.socket, "none" if told_apart else None) as child:
            if not told_apart:
                os.write(tell, child.ask("hello", v=VERSION, role="none")["code"].encode())
                os._exit(0)
            steps = child.begin("steps")
            before_s = time.process_time()
            burn(0.3)
            cpu_ns = round((time.process_time() - before_s) * NS_PER_S)
            os.write(tell, b"%d %d" % (cpu_ns, domain(child.end(steps, cpu_ns=cpu_ns))["task_uj"]))
        os._exit(0)
    usage = os.wait4(pid, 0)[2]
    own_s = time.thread_time() - started_s
    figure = client.end(window)
    said = os.read(told, 100)
    os.close(told)
    os.close(tell)
    assert_counted(figure, usage.ru_utime + usage.ru_stime + own_s)
    if not told_apart:
        assert said == b"PARTY_UNTOLD"
        return
    child_ns, child_uj = map(int, said.split())
    assert child_ns / NS_PER_S == pytest.approx(0.3, rel=0.05, abs=0.02)
    assert 0 < child_uj < domain(figure)["task_uj"]


def test_windows_over_one_thread_nest_and_the_outer_one_goes_on_after_the_inner_one(client):
    tid = threading.get_native_id()
    outer = client.begin("thread", tid=tid)
    burn(0.1)
    inner = client.begin("thread", tid=tid)
    inner_s = burn(0.2)
    of_inner = client.end(inner)
    after_s = burn(0.1)
    of_outer = client.end(outer)
    assert_counted(of_inner, inner_s)
    # Each second is one window's: the outer one has what is not the inner one's.
    assert_counted(of_outer, 0.1 + after_s)


def test_after_its_window_a_thread_is_its_processs_again(client):
    client_window = client.begin("process")
    window = client.begin("thread", tid=threading.get_native_id())
    task_s = burn(0.2)
    assert_counted(client.end(window), task_s)
    burn(0.2)
    of_process = client.end(client_window, cpu_ns=round(0.1 * NS_PER_S))
    assert_sums(of_process)
    assert of_process["cpu_ns"] == round(0.1 * NS_PER_S)


def test_steps_have_the_part_of_their_process_that_their_cpu_time_stands_for(client):
    one, other = client.begin("steps"), client.begin("steps")
    started_s = time.process_time()
    burn(0.3)
    whole_s = time.process_time() - started_s
    part_s = whole_s / 3
    first = client.end(one, cpu_ns=round(part_s * NS_PER_S))
    second = client.end(other, cpu_ns=round(part_s * NS_PER_S))
    for figure in (first, second):
        assert_sums(figure)
        assert figure["cpu_ns"] == round(part_s * NS_PER_S)
    a_uj, b_uj = domain(first)["task_uj"], domain(second)["task_uj"]
    assert a_uj == pytest.approx(b_uj, rel=0.1)
    # The two together have no more than their process: what more is claimed is not there.
    with pytest.raises(AssertionError):
        client.end(one)


def test_claims_of_one_process_never_come_to_more_than_it_used(agent, driver):
    process = driver()
    process.hello("none")
    windows = [process.begin("steps") for _ in range(4)]
    watch = process.begin("steps")
    process.do("burn", cpu_s=0.2)
    figures = [process.end(window, cpu_ns=NS_PER_S) for window in windows]  # each claims five times all of it
    last = process.end(watch, cpu_ns=0)
    assert sum(figure["cpu_ns"] for figure in figures) / NS_PER_S == pytest.approx(0.2, rel=0.1, abs=0.05)
    assert sum(domain(figure)["task_uj"] for figure in figures) <= domain(last)["counter_uj"]
    assert domain(last)["task_uj"] == 0
    for figure in (*figures, last):
        assert_sums(figure)


def test_steps_on_a_thread_with_a_window_of_its_own_have_part_of_that_window(client):
    tid = threading.get_native_id()
    outer = client.begin("thread", tid=tid)
    steps = client.begin("steps", tid=tid)
    used_s = burn(0.2)
    of_steps = client.end(steps, cpu_ns=round(0.5 * used_s * NS_PER_S))
    of_outer = client.end(outer)
    assert_sums(of_steps)
    assert_counted(of_outer, used_s)
    assert domain(of_steps)["task_uj"] == pytest.approx(0.5 * domain(of_outer)["task_uj"], rel=0.3)


def test_the_process_of_an_engine_is_overhead_but_for_the_users_code(agent, driver):
    engine = driver()
    engine.hello("engine")
    window = engine.begin("process")
    engine.do("burn", cpu_s=0.4)
    figure = engine.end(window, cpu_ns=round(0.3 * NS_PER_S))
    assert_sums(figure)
    assert figure["cpu_ns"] == round(0.3 * NS_PER_S)
    # What is left of the process, the agent itself, and whatever engines this machine runs beside the tests.
    assert figure["overhead_cpu_ns"] / NS_PER_S > 0.05
    assert domain(figure)["overhead_uj"] > 0


def test_a_process_alone_has_its_own_overhead_and_no_other_engines(agent, driver):
    engine = driver()
    engine.hello("engine")
    window = engine.begin("self")
    engine.do("burn", cpu_s=0.4)
    figure = engine.end(window, cpu_ns=round(0.3 * NS_PER_S))
    assert_sums(figure)
    assert figure["overhead_cpu_ns"] / NS_PER_S == pytest.approx(0.1, abs=0.08)


def test_the_process_of_an_engine_and_its_threads_tasks_are_told_apart(agent, driver):
    engine = driver(uid=NOBODY)  # who is told nothing of other engines
    engine.hello("engine")
    process = engine.begin("process")
    thread = engine.do("thread", cpu_s=0.3)
    task = engine.begin("thread", tid=thread)
    cpu_s = engine.do("work", number=0)
    of_task = engine.end(task)
    of_process = engine.end(process, cpu_ns=0)
    assert of_task["cpu_ns"] / NS_PER_S == pytest.approx(cpu_s, rel=0.05, abs=0.02)
    assert of_process["cpu_ns"] == domain(of_process)["task_uj"] == 0
    assert of_process["overhead_cpu_ns"] < 0.1 * NS_PER_S
    assert domain(of_process)["overhead_uj"] < domain(of_task)["task_uj"]


def test_steps_of_a_thread_whose_window_has_ended_keep_what_they_had(client):
    tid = threading.get_native_id()
    outer, steps = client.begin("thread", tid=tid), client.begin("steps", tid=tid)
    used_s = burn(0.2)
    client.end(outer)
    others = [client.begin("thread", tid=tid)]  # may have the number of the one that ended
    burn(0.2)
    figure = client.end(steps, cpu_ns=10 * NS_PER_S)
    client.end(others[0])
    assert_counted(figure, used_s)
