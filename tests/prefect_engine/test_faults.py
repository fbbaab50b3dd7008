"""Whatever happens to us, the user's flow runs, in bounded time, with the same result; and it is shown."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from support import artifacts_of, burn, only_run, ref, tasks_of

from tao_flows import runtime, tao_flow, tao_task
from tao_flows.errors import DeniedError
from tao_flows.figures import Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.prefect import publish
from tao_flows.records import TaskState
from tao_flows.telemetry.rapl import RaplSource
from tao_flows.testing import PowercapTree


@tao_task(task_run_name="work-{n}")
def work(n: int) -> int:
    burn(0.01)
    return n * n


@tao_flow
def squares() -> list[int]:
    return work.map([1, 2, 3]).result()


def ended_squares() -> tuple[list[int], str]:
    """The result of a run and its id, from the run's own state: the ledger may know nothing."""
    state = squares(return_state=True)
    return state.result(), str(state.state_details.flow_run_id)


@pytest.fixture
def broken_ledger(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> Iterator[Path]:
    path = tmp_path / "ledger.db"
    blocker = None
    if request.param == "unwritable":
        (tmp_path / "file").write_text("a file where a directory should be")
        path = tmp_path / "file" / "ledger.db"
    elif request.param == "corrupt":
        open_ledger(f"sqlite:///{path}").runs()
        path.write_bytes(os.urandom(8192))
    elif request.param == "foreign":
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
        other.close()
    elif request.param == "locked":
        open_ledger(f"sqlite:///{path}").runs()
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(path))
    runtime.forget()
    yield path
    if blocker is not None:
        blocker.rollback()
        blocker.close()
    runtime.forget()


@pytest.mark.parametrize("broken_ledger", ["unwritable", "corrupt", "foreign", "locked"], indirect=True)
def test_a_broken_ledger_changes_nothing_for_the_flow_and_the_report_is_still_whole(broken_ledger: Path) -> None:
    started_s = time.monotonic()
    result, run_id = ended_squares()
    assert result == [1, 4, 9]
    assert time.monotonic() - started_s < 30
    artifacts = artifacts_of(run_id)
    page = str(artifacts["tao-energy-squares"][-1]).replace("\\", "")
    for n in (1, 2, 3):
        assert f"work-{n}" in page, "what the ledger could not keep, memory did"
    assert "LEDGER_" in page, "the failure is shown"


def test_a_full_disk_changes_nothing_for_the_flow(server: str, tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("needs root and mount namespaces to have a small disk of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=256k tmpfs {disk} && exec {sys.executable} {Path(__file__).parent}/flows/full.py"
    env = {**os.environ, "TAO_FLOWS_LEDGER": str(disk / "ledger.db"), "PREFECT_LOGGING_LEVEL": "INFO"}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "result 9900" in done.stdout
    assert "LEDGER_FULL" in done.stderr


def test_a_source_that_raises_midway_makes_the_figure_unknown_and_nothing_else(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = PowercapTree(tmp_path / "powercap")
    tree.add_zone("intel-rapl:0", "package-0", 1_000)
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tree.root))
    broken: list[bool] = []

    def breakable(real: Callable[[RaplSource], object]) -> Callable[[RaplSource], object]:
        def read(source: RaplSource) -> object:
            if broken:
                raise ZeroDivisionError("a driver's own bug")
            return real(source)

        return read

    monkeypatch.setattr(RaplSource, "read", breakable(RaplSource.read))
    monkeypatch.setattr(RaplSource, "read_raw", breakable(RaplSource.read_raw))
    runtime.forget()

    @tao_task
    def before() -> None:
        burn(0.05)
        tree.move("intel-rapl:0", 5_000_000)

    @tao_task
    def during() -> str:
        broken.append(True)
        return "done"

    @tao_flow
    def main() -> str:
        before()
        return during()

    assert main() == "done"
    (record,) = tasks_of(ledger, "before")
    assert record.measurement is not None
    assert record.measurement.energy.quality is Quality.ATTRIBUTED
    assert record.measurement.domains[0].counter_uj == 5_000_000
    (record,) = tasks_of(ledger, "during")
    assert record.measurement is not None
    assert record.measurement.energy.value_uj is None
    assert record.measurement.energy.quality is Quality.UNKNOWN
    assert "SOURCE_RAISED:ZeroDivisionError" in record.measurement.domains[0].events


class _SilentApi(BaseHTTPRequestHandler):
    """Answers nothing for a long time, as a server that hangs does."""

    def _hang(self) -> None:
        time.sleep(30)

    do_GET = do_POST = _hang  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("kind", ["gone", "hanging"])
def test_an_api_that_is_gone_or_hangs_when_the_report_is_due_costs_seconds_and_loses_nothing(
    ledger: Ledger, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_now = publish._publish
    took: list[float] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hanging = HTTPServer(("127.0.0.1", port), _SilentApi) if kind == "hanging" else None
    if hanging is not None:
        threading.Thread(target=hanging.serve_forever, daemon=True).start()

    def publish_without_an_api(*args: object) -> None:
        started_s = time.monotonic()
        try:
            with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
                publish_now(*args)
        finally:
            took.append(time.monotonic() - started_s)

    monkeypatch.setattr(publish, "_publish", publish_without_an_api)
    assert squares() == [1, 4, 9]
    assert took[0] < 20
    assert only_run(ledger).state == "completed"
    assert len(tasks_of(ledger)) == 3
    incidents = ledger.incidents(ref(only_run(ledger)))
    assert any("reporting a flow run" in incident.summary for incident in incidents)
    if hanging is not None:
        hanging.shutdown()
        hanging.server_close()


def test_mode_off_does_nothing_at_all(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_MODE", "off")
    result, run_id = ended_squares()
    assert result == [1, 4, 9]
    assert ledger.runs() == []
    assert artifacts_of(run_id) == {}


def test_the_kill_switch_in_the_file_works_in_a_running_process(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "tao-flows.toml"
    settings.write_text('mode = "observe"\n')
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(settings))
    runtime.forget()

    @tao_flow
    def main() -> None:
        work(1)
        settings.write_text('mode = "off"  # an operator, while the flow runs\n')
        time.sleep(runtime.SETTINGS_MAX_AGE_S)
        work(2)

    main()
    assert [task.task_label for task in tasks_of(ledger)] == ["work-1"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TAO_FLOWS_MODE", "sideways"), ("TAO_FLOWS_SOURCES", "ouija"), ("TAO_FLOWS_CONFIG", "/nowhere/tao.toml")],
)
def test_a_broken_setting_turns_us_off_and_not_the_flow(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    runtime.forget()
    assert squares() == [1, 4, 9]
    assert "tao-flows is off in this process" in caplog.text
    assert value in caplog.text
    runtime.forget()


def test_a_budget_that_nobody_configured_is_said_and_does_not_stop_the_task(ledger: Ledger) -> None:
    @tao_task(budget="team-a")
    def charged() -> str:
        return "done"

    @tao_flow
    def main() -> str:
        return charged()

    assert main() == "done"
    run = only_run(ledger)
    (incident,) = [i for i in ledger.incidents(ref(run)) if i.code == "UNKNOWN_BUDGET"]
    assert "team-a" in incident.summary
    assert incident.remedy
    assert [task.budget for task in tasks_of(ledger)] == [""]


def test_a_budget_is_spent_by_the_tasks_charged_to_it_and_shows_in_the_decision(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "tao-flows.toml"
    settings.write_text('[budgets.team-a]\nlimit = "1 J"\n')
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(settings))
    runtime.forget()

    @tao_task(budget="team-a")
    def charged() -> None:
        burn(0.3)

    @tao_flow
    def main() -> None:
        for _ in range(4):
            charged()

    main()
    decisions = ledger.decisions(ref(only_run(ledger)))
    spent = [decision.request["budget"][0]["spent_j"] for decision in decisions]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert spent[-1] > 0.5
    known = sum(t.measurement.energy.value_j or 0 for t in tasks_of(ledger)[:3] if t.measurement)
    assert spent[-1] == pytest.approx(known)
    assert {decision.action for decision in decisions} == {"run"}


def test_only_mode_enforce_denies_and_only_over_a_ceiling(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "tao-flows.toml"
    settings.write_text('[budgets.tight]\nlimit = "1 mJ"\nceiling = "1 mJ"\n')
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(settings))
    runtime.forget()
    calls: list[int] = []

    @tao_task(budget="tight", retries=0)
    def charged() -> str:
        calls.append(1)
        burn(0.1)
        return "done"

    @tao_flow
    def main() -> str:
        return charged()

    assert main() == "done", "nothing is known of it yet"
    assert main() == "done", "observe only observes"
    monkeypatch.setenv("TAO_FLOWS_MODE", "advise")
    assert main() == "done"
    monkeypatch.setenv("TAO_FLOWS_MODE", "enforce")
    with pytest.raises(DeniedError, match="ceiling"):
        main()
    assert len(calls) == 3
    newest = ledger.runs()[0]
    (decision,) = ledger.decisions(ref(newest))
    assert (decision.mode, decision.action, decision.enforced) == ("enforce", "deny", True)
    assert ledger.tasks(ref(newest)) == [], "what was denied never started"
    page = str(artifacts_of(newest.run_id)["tao-energy-main"][-1])
    assert "deny" in page
    assert "running" not in page
    observed = ledger.decisions(ref(ledger.runs()[2]))[0]
    assert (observed.mode, observed.action, observed.enforced) == ("observe", "deny", False)


def test_settings_come_from_a_block_that_the_environment_names(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_blocks import TaoController

    TaoController(team="from-the-block", owner="block-owner").save("energy", overwrite=True)
    monkeypatch.setenv("TAO_FLOWS_PREFECT_BLOCK", "energy")
    monkeypatch.setenv("TAO_FLOWS_OWNER", "from-the-environment")
    runtime.forget()
    squares()
    who = only_run(ledger).who
    assert (who.team, who.owner) == ("from-the-block", "from-the-environment")


def test_a_run_of_a_task_whose_state_is_failed_counts_as_failed_in_the_report(ledger: Ledger) -> None:
    @tao_task
    def broken() -> None:
        raise ValueError("on purpose")

    @tao_flow
    def main() -> str:
        broken(return_state=True)
        return "went on"

    assert main() == "went on"
    assert [task.state for task in tasks_of(ledger)] == [TaskState.FAILED]
