"""The meter of a host with an agent: whose figures it takes, and what is left without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tao_flows import measure, runtime
from tao_flows.agent.meter import AgentMeter
from tao_flows.agent.wire import AgentFigure, Begin, End, FigureDomain, Hello
from tao_flows.attribution import run_account
from tao_flows.config import ConfigWatcher
from tao_flows.figures import AGENT_PENDING, Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.measurement import unmeasured
from tao_flows.meter import Meter, TaskUse
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState
from tao_flows.runtime import Tao
from tao_flows.testing import PowercapTree

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")
PACKAGE = {"id": "package-0", "kind": "package", "source": "rapl", "counted": True, "within": None, "events": []}
DRAM = PACKAGE | {"id": "package-0/dram", "kind": "dram"}
CORE = PACKAGE | {"id": "package-0/core", "kind": "core", "counted": False, "within": "package-0"}
GPU = PACKAGE | {"id": "gpu-0", "kind": "gpu", "source": "nvml"}
OURS = CpuTime(2.0, "perf", covers_children=True)


def told(*domains: FigureDomain, **changes: Any) -> AgentFigure:
    fields = {"wall_ns": 2_000_000_000, "cpu_ns": 1_500_000_000, "cpu_source": "ebpf", "lower_bound": False}
    return AgentFigure(**{**fields, "domains": domains, **changes})


WHOLE = FigureDomain(
    "package-0", 4_000_000, 3_000_000, 5_000_000, "attributed",
    counter_uj=10_000_000, idle_uj=2_000_000, overhead_uj=500_000, unattributed_uj=3_500_000,
)  # fmt: skip
OWN = FigureDomain("package-0", 4_000_000, 3_000_000, 5_000_000, "attributed")


@pytest.fixture
def tao(agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Builds a Tao whose agent is the scripted one; what it has built is closed."""
    monkeypatch.setenv("TAO_FLOWS_AGENT", str(agent.path))
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tmp_path / "powercap"))
    built: list[Tao] = []

    def build(*domains: dict[str, Any], sources: str = "agent,rapl,estimate", role: Any = "none", **hello: Any) -> Tao:
        agent.hello |= {"domains": list(domains), **hello}
        monkeypatch.setenv("TAO_FLOWS_SOURCES", sources)
        built.append(runtime.build(ConfigWatcher(), role=role))
        return built[-1]

    yield build
    for each in built:
        each.meter.close()
        each.ledger.close()


def measured(tao: Tao, cpu: CpuTime = OURS, **begin: Any) -> Measurement:
    window = tao.meter.begin("embed", **begin)
    return tao.meter.end(window, TaskUse(cpu))


def test_energy_and_cpu_time_are_the_agents(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told(WHOLE)
    m = measured(tao(PACKAGE), party="thread")
    assert m.energy == Figure(4_000_000, 3_000_000, 5_000_000, Quality.ATTRIBUTED, ("agent:rapl",))
    assert m.cpu == CpuTime(1.5, "ebpf", covers_children=True)
    (domain,) = m.domains
    assert (domain.domain, domain.source, domain.kind) == ("package-0", "agent:rapl", "package")
    assert (domain.counter_uj, domain.idle_uj, domain.task_uj) == (10_000_000, 2_000_000, 4_000_000)
    assert domain.quality is Quality.MEASURED
    assert m.model is None
    assert m.label == "embed"
    assert "NO_ENERGY_SOURCE" not in m.events


def test_the_account_of_a_privileged_client_sums_to_the_counters(agent: Any, tao: Any) -> None:
    gpu = FigureDomain(
        "gpu-0", 7, 7, 7, "attributed",
        counter_uj=20, idle_uj=3, overhead_uj=0, allocated_idle_uj=4, unattributed_uj=6,
    )  # fmt: skip
    agent.figure = lambda _: told(WHOLE, gpu)
    account = measured(tao(PACKAGE, GPU), party="thread").account
    assert account.counter_uj == 10_000_020
    lines = (account.tasks_uj, account.overhead_uj, account.idle_uj, account.allocated_idle_uj, account.unattributed_uj)
    assert lines == (4_000_007, 500_000, 2_000_003, 4, 3_500_006)
    assert sum(lines) == account.counter_uj
    assert account.quality is Quality.ATTRIBUTED
    assert account.unknown_parts == ()


def test_an_ordinary_client_learns_its_own_joules_and_nothing_of_the_host(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told(OWN)
    m = measured(tao(PACKAGE, privileged=False), party="thread")
    assert m.energy.value_uj == 4_000_000
    (domain,) = m.domains
    assert (domain.counter_uj, domain.idle_uj, domain.quality) == (None, None, Quality.ATTRIBUTED)
    account = m.account
    assert account.tasks_uj == 4_000_000
    assert (account.counter_uj, account.overhead_uj, account.idle_uj, account.unattributed_uj) == (None,) * 4


def test_what_lies_inside_a_domain_is_shown_and_not_summed(agent: Any, tao: Any) -> None:
    inside = FigureDomain("package-0/core", None, None, None, "measured", counter_uj=8_000_000)
    dram = FigureDomain("package-0/dram", 1_000_000, 500_000, 2_000_000, "attributed")
    agent.figure = lambda _: told(WHOLE, dram, inside)
    m = measured(tao(PACKAGE, DRAM, CORE), party="thread")
    assert m.energy.value_uj == 5_000_000
    assert m.energy.coverage == 1.0
    assert {each.domain: each.counted for each in m.domains} == {
        "package-0": True, "package-0/dram": True, "package-0/core": False,
    }  # fmt: skip
    assert m.account.counter_uj == 10_000_000


def test_a_domain_that_is_not_known_is_an_unknown_part_and_never_nothing(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told(OWN, FigureDomain("package-0/dram", None, None, None, "unknown", known=0.0))
    m = measured(tao(PACKAGE, DRAM), party="thread")
    assert m.energy.value_uj == 4_000_000
    assert m.energy.unknown_parts == ("package-0/dram",)
    assert m.energy.coverage == 0.5
    assert m.domains[1].task_uj is None
    assert m.account.unknown_parts == ("package-0/dram",)


def test_a_gap_takes_from_the_coverage_and_is_told(agent: Any, tao: Any) -> None:
    partly = FigureDomain("package-0", 4_000_000, 3_000_000, 5_000_000, "attributed", known=0.4)
    agent.figure = lambda _: told(partly, gap_ns=1_200_000_000, codes=("AGENT_RESTARTED",))
    m = measured(tao(PACKAGE), CpuTime(None, "perf", covers_children=True), party="thread")
    assert m.energy.value_uj == 4_000_000
    assert m.energy.coverage == 0.4
    assert m.energy.unknown_parts == ("gap of 1.20 s: the agent was restarted",)
    assert m.cpu.lower_bound
    assert "AGENT_RESTARTED" in m.events


def test_a_gap_that_only_cpu_time_has_takes_from_the_coverage_too(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told(OWN, gap_ns=500_000_000)
    m = measured(tao(PACKAGE), party="thread")
    assert m.energy.coverage == 0.75
    # Ours has no gap.
    assert m.cpu == OURS


def test_an_agent_without_counters_counts_cpu_time_for_the_estimate(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told()
    built = tao()
    with_agent = measured(built, party="command", pid=os.getpid())
    assert with_agent.cpu == CpuTime(1.5, "ebpf", covers_children=True)
    assert with_agent.energy.quality is Quality.ESTIMATED
    assert with_agent.model
    cpu = next(each for each in with_agent.domains if each.domain == "cpu")
    agent.mute.add("end")
    agent.stop()
    without = measured(built, party="command", pid=os.getpid())
    assert without.cpu == OURS
    assert without.energy.quality is Quality.ESTIMATED
    assert next(each for each in without.domains if each.domain == "cpu").task_uj == pytest.approx(
        cpu.task_uj * 2.0 / 1.5, rel=1e-3
    )
    assert "AGENT_LOST" in without.events


def test_a_lower_bound_of_the_agents_gives_way_to_a_clock_of_ours_that_is_none(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told(WHOLE, cpu_source="polling", lower_bound=True)
    built = tao(PACKAGE)
    assert measured(built, party="command", pid=os.getpid()).cpu == OURS
    ours = CpuTime(1.0, "wait4", covers_children=True, lower_bound=True)
    theirs = CpuTime(1.5, "polling", covers_children=True, lower_bound=True)
    assert measured(built, ours, party="command", pid=os.getpid()).cpu == theirs


@pytest.mark.parametrize("party", ["steps", "process"])
def test_what_the_caller_counts_is_told_the_agent_and_stays(agent: Any, tao: Any, party: Any) -> None:
    agent.figure = lambda _: told(WHOLE)
    m = measured(tao(PACKAGE), party=party)
    assert m.cpu == OURS
    assert m.energy.value_uj == 4_000_000
    assert (agent.of(Begin)[0].kind, agent.of(End)[0].cpu_ns) == (party, 2_000_000_000)


def test_without_the_callers_cpu_time_its_joules_are_unknown_and_not_nothing(agent: Any, tao: Any) -> None:
    agent.figure = lambda end: told(FigureDomain("package-0", end.cpu_ns or 0, 0, 0, "attributed"))
    m = measured(tao(PACKAGE), CpuTime(None, "thread-clock", covers_children=False), party="steps")
    assert m.energy.value_uj is None
    assert m.energy.unknown_parts == ("package-0",)
    assert agent.of(End)[0].cpu_ns is None


@pytest.mark.parametrize("party", ["thread", "command"])
def test_the_agent_is_told_whose_cpu_time_to_count(agent: Any, tao: Any, party: Any) -> None:
    measured(tao(PACKAGE), party=party, pid=17 if party == "command" else None)
    begin = agent.of(Begin)[0]
    expected = (17, None) if party == "command" else (None, threading.get_native_id())
    assert (begin.pid, begin.tid) == expected
    assert agent.of(End)[0].cpu_ns is None


def test_a_window_that_stays_open_is_asked_for_and_kept(agent: Any, tao: Any) -> None:
    meter = tao(PACKAGE).meter
    window = meter.begin("flow", enclosing=True, party="process")
    meter.end(window, TaskUse(OURS), keep_open=True)
    meter.end(window, TaskUse(OURS))
    assert [end.keep for end in agent.of(End)] == [True, False]
    assert len({end.window for end in agent.of(End)}) == 1


def test_without_the_agent_energy_is_unknown_for_a_reason_and_cpu_time_is_ours(agent: Any, tao: Any) -> None:
    built = tao(PACKAGE)
    agent.stop()
    m = measured(built, party="thread")
    assert m.energy == Figure.unknown("AGENT_LOST")
    assert m.cpu == OURS
    assert m.events == ("AGENT_LOST",)
    assert m.account.unknown_parts == ("AGENT_LOST",)


def test_a_refusal_of_the_agents_is_the_reason(agent: Any, tao: Any) -> None:
    agent.refusals["begin"] = {"code": "AGENT_FULL", "summary": "", "remedy": ""}
    assert measured(tao(PACKAGE), party="thread").events == ("AGENT_FULL",)


def test_a_figure_that_comes_too_late_is_unknown(agent: Any, tao: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tao_flows.agent.client.FIGURE_S", 0.1)
    agent.figure = lambda _: None
    m = measured(tao(PACKAGE), party="thread")
    assert m.energy == Figure.unknown("AGENT_LATE")
    assert m.cpu == OURS


def test_a_figure_of_a_later_version_is_none(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told(FigureDomain("package-0", 1, 1, 1, "divined"))
    m = measured(tao(PACKAGE), party="thread")
    assert m.energy == Figure.unknown("AGENT_BAD_ANSWER")


def test_who_does_not_wait_is_told_that_more_is_to_come(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: None
    meter = tao(PACKAGE, privileged=False).meter
    window = meter.begin("embed", party="thread")
    ended, use = meter.stop(window), TaskUse(OURS)
    first = meter.work_out(window, ended, use, wait=False)
    assert first.pending
    assert first.energy == Figure.unknown("AGENT_PENDING")
    assert first.cpu == OURS
    give_up_s = time.monotonic() + 10.0
    while not agent.held and time.monotonic() < give_up_s:  # the agent hears of it in a thread of its own
        time.sleep(0.01)
    agent.tell(*agent.held[0], told(OWN))
    last = meter.work_out(window, ended, use)
    assert not last.pending
    assert last.energy.value_uj == 4_000_000


def test_a_privileged_client_is_answered_before_it_could_go_on(agent: Any, tao: Any) -> None:
    agent.figure = lambda _: told(WHOLE)
    meter = tao(PACKAGE).meter
    window = meter.begin("embed", party="thread")
    m = meter.work_out(window, meter.stop(window), TaskUse(OURS), wait=False)
    assert not m.pending
    assert m.energy.value_uj == 4_000_000


def test_tasks_are_added_to_the_account_of_a_run_of_whose_host_nothing_is_told() -> None:
    own = Account(tasks_uj=5, overhead_uj=2, quality=Quality.ATTRIBUTED)
    assert run_account(own, 7) == replace(own, tasks_uj=12)
    assert run_account(Account(), 7) == Account()


@pytest.mark.parametrize("complete_first", [True, False])
def test_a_ledger_keeps_the_complete_record_whatever_is_written_last(tmp_path: Path, complete_first: bool) -> None:
    segment = Segment("n1", "boot", 1, 2)
    key = RunKey("prefect", "default", "flow", "run", "task", "instance", 1)
    pending = replace(unmeasured("task", 10, 1.0, "X"), events=(AGENT_PENDING,))
    first = TaskRecord(key, segment, TaskState.COMPLETED, 10, ended_wall_ns=20, measurement=pending)
    last = replace(first, measurement=replace(pending, events=("COMPLETE",)))
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    for record in (last, first) if complete_first else (first, last):
        ledger.put_task(record)
    assert list(ledger.tasks(RunRef("prefect", "default", "run"))) == [last]
    ledger.close()


# Which sources are used beside it.


@pytest.fixture
def counter(tmp_path: Path) -> PowercapTree:
    tree = PowercapTree(tmp_path / "powercap")
    tree.add_zone("intel-rapl:0", "package-0", 1_000)
    return tree


def test_what_the_agent_counts_is_not_read_here(agent: Any, tao: Any, counter: PowercapTree) -> None:
    built = tao(PACKAGE)
    assert isinstance(built.meter, AgentMeter)
    assert built.discovery.sources == ()
    assert built.discovery.estimator is None
    assert [domain.id for domain in built.meter.domains] == ["package-0"]


def test_a_counter_that_comes_first_is_read_here_and_cpu_time_is_still_the_agents(
    agent: Any, tao: Any, counter: PowercapTree
) -> None:
    agent.figure = lambda _: told(WHOLE)
    for sources in ("rapl,agent", "rapl"):
        built = tao(PACKAGE, sources=sources)
        window = built.meter.begin("embed", party="thread")
        counter.move("intel-rapl:0", 5_000_000)
        m = built.meter.end(window, TaskUse(OURS))
        assert m.account.counter_uj == 5_000_000
        assert m.energy.sources == ("rapl",)
        assert m.cpu.source == "ebpf"


def test_an_agent_that_counts_only_gpus_leaves_the_processors_to_us(
    agent: Any, tao: Any, counter: PowercapTree
) -> None:
    gpu = FigureDomain("gpu-0", 7, 7, 7, "attributed", counter_uj=20, idle_uj=13, unattributed_uj=0)
    agent.figure = lambda _: told(gpu)
    built = tao(GPU)
    window = built.meter.begin("embed", party="thread")
    counter.move("intel-rapl:0", 5_000_000)
    m = built.meter.end(window, TaskUse(OURS))
    assert {each.domain for each in m.domains} == {"gpu-0", "package-0"}
    assert m.account.counter_uj == 5_000_020
    assert set(m.energy.sources) == {"agent:nvml", "rapl"}
    assert m.energy.value_uj == m.account.tasks_uj


def test_without_an_agent_there_is_the_plain_meter_and_no_word_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TAO_FLOWS_AGENT")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tao_flows.agent.link.SYSTEM_SOCKET", tmp_path / "none/agent.sock")
    tao = runtime.build(ConfigWatcher())
    assert type(tao.meter) is Meter
    assert caplog.messages == []
    assert next(each for each in tao.discovery.diagnoses if each.id == "agent").code == "AGENT_ABSENT"
    tao.ledger.close()


def test_an_agent_that_was_named_and_is_not_there_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TAO_FLOWS_AGENT", str(tmp_path / "none.sock"))
    tao = runtime.build(ConfigWatcher())
    assert type(tao.meter) is Meter
    assert [message for message in caplog.messages if "AGENT_ABSENT" in message] == [
        f"AGENT_ABSENT: no agent at {tmp_path}/none.sock (start it on this host as root: tao-flows agent)"
    ]
    assert tao.incidents.of_run("")[0].code == "AGENT_ABSENT"
    tao.ledger.close()


def test_off_is_no_agent_and_no_word(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_AGENT", "OFF")
    tao = runtime.build(ConfigWatcher())
    assert type(tao.meter) is Meter
    assert agent.asked == []
    tao.ledger.close()


# Those who measure.


@pytest.fixture
def fresh() -> Iterator[None]:
    runtime.forget()
    yield
    tao = runtime.current()
    if tao is not None:
        tao.meter.close()
        tao.ledger.close()
    runtime.forget()


@pytest.mark.usefixtures("fresh")
def test_a_measured_block_waits_for_the_agent_only_when_it_is_looked_at(
    agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAO_FLOWS_AGENT", str(agent.path))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "agent")
    agent.hello |= {"domains": [PACKAGE], "privileged": False}
    agent.figure = lambda _: None
    with measure("index") as m:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
    assert m._result is None
    begin = agent.of(Begin)[0]
    assert (begin.kind, begin.label) == ("steps", "index")
    while not agent.held:
        time.sleep(0.001)
    assert agent.held[0][1].cpu_ns >= 20_000_000
    agent.tell(*agent.held[0], told(OWN))
    assert m.energy.value_j == 4.0
    assert m.cpu_s >= 0.02
    assert agent.of(Hello)[0].role == "none"


def metered(tmp_path: Path, *command: str, **env: str) -> dict[str, Any]:
    path = tmp_path / "measurement.json"
    subprocess.run(
        [TAO_FLOWS, "meter", "--json", path, "--", *command],
        env={**os.environ, **env}, check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_command_is_registered_before_it_runs_and_its_figure_waited_for(
    agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.hello |= {"domains": [PACKAGE], "privileged": False}
    agent.figure = lambda _: told(OWN)
    trace = tmp_path / "pid"
    document = metered(tmp_path, "sh", "-c", f"echo $$ > {trace}", TAO_FLOWS_AGENT=str(agent.path))
    assert [type(request) for request in agent.asked] == [Hello, Begin, End]
    assert agent.of(Hello)[0].role == "tool"
    begin = agent.of(Begin)[0]
    assert (begin.kind, begin.pid, begin.label) == ("command", int(trace.read_text()), "sh")
    assert document["energy"]["value_j"] == 4.0
    assert document["energy"]["sources"] == ["agent:rapl"]
    assert (document["cpu_source"], document["cpu_s"]) == ("ebpf", 1.5)
    assert document["account"]["counter_j"] is None
    assert document["account"]["tasks_j"] == 4.0


def test_a_command_runs_whatever_the_agent_does(agent: Any, tmp_path: Path) -> None:
    agent.mute |= {"begin"}
    agent.hello["domains"] = [PACKAGE]
    document = metered(tmp_path, "true", TAO_FLOWS_AGENT=str(agent.path))
    assert document["exit_code"] == 0
    assert document["energy"]["value_j"] is None
    assert "AGENT_LOST" in document["events"]


def doctor(**env: str) -> dict[str, Any]:
    done = subprocess.run(
        [TAO_FLOWS, "doctor", "--json"], env={**os.environ, **env}, check=True, capture_output=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_doctor_says_what_the_agent_says_and_what_there_is_without_it(
    agent: Any, counter: PowercapTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.hello |= {"domains": [PACKAGE, CORE], "counts": {"windows": 3}}
    found = doctor(TAO_FLOWS_AGENT=str(agent.path), TAO_FLOWS_POWERCAP_ROOT=str(counter.root))
    assert found["agent"]["path"] == str(agent.path)
    assert (found["agent"]["status"], found["agent"]["code"]) == ("ready", "READY")
    assert "1 of 2 domains counted; CPU time by ebpf" in found["agent"]["summary"]
    assert found["agent"]["says"]["counts"] == {"windows": 3}
    rows = {row["id"]: row for row in found["sources"]}
    assert rows["agent"]["domains"] == ["package-0", "package-0/core"]
    assert (rows["rapl"]["status"], rows["rapl"]["code"]) == ("ready", "NOT_CHOSEN")
    assert "agent comes first" in rows["rapl"]["summary"]
    assert (found["calibration"]["status"], "not calibrated" in found["calibration"]["summary"]) == ("absent", True)
    assert found["chosen"]["energy"][0] == "agent"
    assert not {"rapl", "estimate"} & set(found["chosen"]["energy"])
    assert found["chosen"]["cpu_time"] == found["chosen"]["cpu_time_threads"] == "agent:ebpf"


def test_doctor_says_why_there_is_no_agent(agent: Any) -> None:
    agent.stop()
    found = doctor(TAO_FLOWS_AGENT=str(agent.path))
    assert (found["agent"]["status"], found["agent"]["code"]) == ("broken", "AGENT_STALE_SOCKET")
    assert "tao-flows agent" in found["agent"]["remedy"]
    assert found["agent"]["says"] is None
    shown = subprocess.run(
        [TAO_FLOWS, "doctor"], env={**os.environ, "TAO_FLOWS_AGENT": str(agent.path)}, capture_output=True, text=True
    )
    assert "AGENT_STALE_SOCKET" in shown.stdout
