"""``with measure(...)``: figures of a block of code, and nothing that the block could notice."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tao_flows import measure, runtime
from tao_flows.errors import InputError, SourceError
from tao_flows.figures import Account, Quality
from tao_flows.runtime import SETTINGS_MAX_AGE_S
from tao_flows.telemetry import perf
from tao_flows.testing import PowercapTree

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Each test has the settings it made for itself."""
    runtime.forget()
    yield
    tao = runtime.current()
    if tao is not None:
        tao.meter.close()
        tao.ledger.close()
    runtime.forget()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PowercapTree:
    tree = PowercapTree(tmp_path / "powercap")
    tree.add_zone("intel-rapl:0", "package-0", 1_000)
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tree.root))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "rapl")
    return tree


@pytest.fixture
def estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "estimate")


def test_a_block_is_given_its_share_of_what_the_counter_moved(tree: PowercapTree) -> None:
    with measure("index") as m:
        burn(0.06)
        tree.move("intel-rapl:0", 5_000_000)
    assert m.account.counter_uj == 5_000_000
    assert m.energy.quality is Quality.ATTRIBUTED
    assert 0 < m.energy.low_j <= m.energy.value_j <= m.energy.high_j
    assert m.energy.value_j <= 5.0
    assert [each.domain for each in m.domains] == ["package-0"]
    assert m.cpu_s >= 0.06
    assert m.wall_s >= 0.06
    assert m.measurement.label == "index"


@pytest.mark.usefixtures("estimate")
def test_without_a_counter_the_figures_are_an_estimate_of_cpu_and_memory() -> None:
    with measure("index") as m:
        burn(0.05)
    assert m.energy.quality is Quality.ESTIMATED
    assert m.energy.value_j > 0
    assert m.energy.low_j == pytest.approx(m.energy.value_j / 2, abs=2e-6)
    assert {each.domain for each in m.domains} == {"cpu", "memory"}
    assert all(each.task_uj > 0 for each in m.domains)
    assert m.account.counter_uj is None
    assert m.account.estimate_uj > m.energy.value_uj
    assert m.measurement.memory_bytes > 1_000_000


@pytest.mark.usefixtures("estimate")
def test_a_block_alone_is_charged_for_its_threads_and_the_children_it_waited_for() -> None:
    with measure() as m:
        thread = threading.Thread(target=burn, args=(0.1,))
        thread.start()
        thread.join()
        subprocess.run([sys.executable, "-S", "-c", BURN.format(0.1)], check=True)
    assert m.measurement.cpu.source == "process-clock+wait4"
    assert m.measurement.cpu.covers_children
    assert 0.2 <= m.cpu_s < 0.6


@pytest.mark.usefixtures("estimate")
def test_a_block_inside_a_block_is_measured_within_it() -> None:
    with measure("outer") as outer:
        burn(0.03)
        with measure("inner") as inner:
            burn(0.05)
    assert inner.cpu_s == pytest.approx(0.05, abs=0.01)
    assert outer.cpu_s >= inner.cpu_s + 0.03
    assert outer.energy.value_uj > inner.energy.value_uj
    assert outer.wall_s > inner.wall_s


@pytest.mark.usefixtures("estimate")
def test_blocks_side_by_side_where_perf_is_refused_are_each_charged_for_their_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise SourceError("PERF_PARANOID", "the kernel keeps perf events from users")

    monkeypatch.setattr(perf, "_open", refuse)
    both = threading.Barrier(2)
    blocks: dict[float, Any] = {}

    def work(cpu_s: float) -> None:
        with measure() as m:
            both.wait()
            burn(cpu_s)
            both.wait()
        blocks[cpu_s] = m

    threads = [threading.Thread(target=work, args=(cpu_s,)) for cpu_s in (0.02, 0.12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cpu_s, m in blocks.items():
        assert m.measurement.cpu.source == "thread-clock"
        assert not m.measurement.cpu.covers_children
        assert m.cpu_s == pytest.approx(cpu_s, abs=0.015)
    assert blocks[0.12].energy.value_uj > blocks[0.02].energy.value_uj


def test_blocks_side_by_side_in_coroutines_are_charged_for_no_others_cpu_and_say_why(tree: PowercapTree) -> None:
    async def work(cpu_s: float) -> measure:
        with measure() as m:
            await asyncio.sleep(0)
            burn(cpu_s)
            await asyncio.sleep(0)
        return m

    async def both() -> list[measure]:
        blocks = await asyncio.gather(work(0.01), work(0.05))
        tree.move("intel-rapl:0", 1_000)
        return [*blocks, await work(0.03)]

    *beside, alone = asyncio.run(both())
    for m in beside:
        assert "COROUTINES_SIDE_BY_SIDE" in m.measurement.events
        assert m.cpu_s is None
        assert m.energy.value_j is None
        assert m.account.tasks_uj is None
        assert m.account.unattributed_uj == m.account.counter_uj
    assert "COROUTINES_SIDE_BY_SIDE" not in alone.measurement.events
    assert alone.cpu_s >= 0.03


def test_an_exception_of_the_block_passes_through_and_the_block_is_measured_up_to_it(tree: PowercapTree) -> None:
    error, m = KeyError("theirs"), measure()

    def block() -> None:
        with m:
            tree.move("intel-rapl:0", 77)
            raise error

    with pytest.raises(KeyError) as caught:
        block()
    assert caught.value is error
    assert m.account.counter_uj == 77


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("figure", ["energy", "domains", "cpu_s", "wall_s", "account", "measurement"])
def test_a_figure_that_is_read_within_the_block_is_an_error_that_says_when_to_read_it(figure: str) -> None:
    with measure("index") as m, pytest.raises(InputError) as caught:
        getattr(m, figure)
    assert caught.value.code == "STILL_OPEN"
    assert "'index'" in caught.value.summary
    assert getattr(m, figure) is not None


def test_a_block_that_is_measured_again_has_the_figures_of_the_last_time(tree: PowercapTree) -> None:
    m = measure("again")
    for moved_uj in (10, 20):
        with m:
            tree.move("intel-rapl:0", moved_uj)
        assert m.account.counter_uj == moved_uj


def test_figures_are_those_of_the_blocks_end_however_late_they_are_read(tree: PowercapTree) -> None:
    with measure() as m:
        tree.move("intel-rapl:0", 10)
    tree.move("intel-rapl:0", 5_000)
    time.sleep(0.02)
    with measure():
        pass
    assert m.account.counter_uj == 10
    first = m.measurement
    assert first is m.measurement


@pytest.mark.usefixtures("tree")
def test_in_mode_off_nothing_is_measured_and_every_figure_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_MODE", "off")
    with measure("x") as m:
        burn(0.01)
    assert (m.energy.value_j, m.energy.quality) == (None, Quality.UNKNOWN)
    assert m.energy.unknown_parts == m.measurement.events == ("MODE_OFF",)
    assert m.cpu_s is None
    assert m.domains == ()
    assert m.account == Account()
    assert m.wall_s >= 0.01
    monkeypatch.setenv("TAO_FLOWS_MODE", "observe")
    time.sleep(SETTINGS_MAX_AGE_S)
    with measure("x") as m:
        pass
    assert m.domains != ()


def test_a_broken_configuration_is_logged_once_and_never_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TAO_FLOWS_MODE", "bogus")
    with caplog.at_level(logging.WARNING, logger="tao_flows"):
        for _ in range(2):
            with measure() as m:
                result = 6 * 7
    assert result == 42
    assert m.energy.value_j is None
    assert m.energy.unknown_parts == ("NOT_CONFIGURED",)
    assert m.wall_s > 0
    (record,) = caplog.records
    assert "TAO_FLOWS_MODE" in record.getMessage()
    assert "'bogus'" in record.getMessage()


@pytest.mark.parametrize("ledger", ["/dev/null/ledger.db", "sqlite:////proc/ledger.db"])
def test_a_ledger_out_of_reach_is_no_matter_here(
    ledger: str, tree: PowercapTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", ledger)
    with measure() as m:
        tree.move("intel-rapl:0", 9)
    assert m.account.counter_uj == 9


def test_a_counter_that_vanishes_within_the_block_is_unknown_and_never_nothing(tree: PowercapTree) -> None:
    with measure() as m:
        tree.vanish("intel-rapl:0")
    assert m.energy.value_j is None
    assert m.energy.low_j is None
    assert m.measurement.power_w is None
    assert m.account.counter_uj is None
    assert m.account.tasks_uj is None
    assert m.domains[0].events == ("READ_VANISHED",)


def test_with_no_source_at_all_figures_are_unknown_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "rapl")
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tmp_path / "none"))
    with measure() as m:
        pass
    assert m.energy.value_j is None
    assert m.energy.unknown_parts == ("NO_ENERGY_SOURCE",)
    assert m.account == Account()
    assert m.cpu_s is not None


def _in_child(tree_root: str, answer: Any) -> None:
    tree = PowercapTree(Path(tree_root))
    with measure() as m:
        burn(0.02)
        tree.move("intel-rapl:0", 123)
    answer.put((m.account.counter_uj, m.cpu_s, m.energy.value_uj))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_measures_for_itself(tree: PowercapTree) -> None:
    with measure() as before:
        tree.move("intel-rapl:0", 5)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    with measure() as around:
        child = context.Process(target=_in_child, args=(str(tree.root), answer))
        child.start()
        counter_uj, cpu_s, task_uj = answer.get(timeout=30)
        child.join()
    assert before.account.counter_uj == 5
    assert child.exitcode == 0
    assert counter_uj == 123
    assert 0.02 <= cpu_s < 0.5
    assert 0 < task_uj <= 123
    assert around.account.counter_uj == 123


FORK_WITHIN = """
import json, os, sys
from tao_flows import measure, runtime

with measure() as m:
    # Any of our threads may hold a lock when the user forks.
    runtime.current().meter._lock.acquire()
    pid = os.fork()
    if pid:
        runtime.current().meter._lock.release()
        os.waitpid(pid, 0)
if pid == 0:
    print(json.dumps([m.energy.value_j, m.measurement.events, m.cpu_s]), flush=True)
    os._exit(0)
"""


@pytest.mark.usefixtures("tree")
def test_a_child_forked_within_a_block_leaves_it_unharmed_and_unmeasured() -> None:
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, "-c", FORK_WITHIN], capture_output=True, text=True, timeout=60, env=env)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [None, ["FORKED_WITHIN"], None]
