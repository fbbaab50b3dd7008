"""``tao-flows calibrate`` as a person runs it: the installed command, counters that are files and move by themselves."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tao_flows.calibration import Baseline
from tao_flows.config import load_config
from tao_flows.ledger import open_ledger
from tao_flows.testing import PowercapTree

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")
BURN = [sys.executable, "-c", "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"]


class Rest:
    """A host of four processors that rests: its counters and its CPU time move at the rates told."""

    def __init__(self, root: Path) -> None:
        self.tree = PowercapTree(root / "powercap")
        self.proc = root / "proc"
        self.proc.mkdir()
        (self.proc / "cpuinfo").write_text("".join(f"processor\t: {n}\nmodel name\t: Test CPU\n\n" for n in range(4)))
        self.spend(0.0)

    def spend(self, busy_s: float) -> None:
        fd = os.open(self.proc / "stat", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, f"cpu  {round(busy_s * 100):020} 0 0 900 0 0 0 0 0 0\n".encode(), 0)
        os.close(fd)

    @contextmanager
    def drawing(self, busy_cpus: float = 0.02, **powers_w: float) -> Iterator[None]:
        """Domains by zone, with ``_`` for ``:``, each moving at its watts from now on."""
        zones = {f"intel-rapl:{zone[1:].replace('_', ':')}": power_w for zone, power_w in powers_w.items()}
        begun_s, done = time.monotonic(), threading.Event()

        def move() -> None:
            while not done.wait(0.002):
                for zone, power_w in zones.items():
                    self.tree.set(zone, 1_000 + round(power_w * (time.monotonic() - begun_s) * 1e6))
                self.spend(busy_cpus * (time.monotonic() - begun_s))

        mover = threading.Thread(target=move)
        mover.start()
        try:
            yield
        finally:
            done.set()
            mover.join()


@pytest.fixture
def rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rest:
    host = Rest(tmp_path)
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(host.tree.root))
    monkeypatch.setenv("TAO_FLOWS_PROC_ROOT", str(host.proc))
    monkeypatch.setenv("TAO_FLOWS_CGROUP_ROOT", str(tmp_path / "none"))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "rapl")
    monkeypatch.setenv("TAO_FLOWS_CALIBRATION", str(tmp_path / "state" / "idle.json"))
    return host


def tao_flows(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TAO_FLOWS, *arguments], capture_output=True, text=True, timeout=60)


def kept() -> Path:
    return Path(os.environ["TAO_FLOWS_CALIBRATION"])


def doctors() -> dict[str, Any]:
    done = tao_flows("doctor", "--json")
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads(done.stdout)["calibration"]
    return row


def metered(tmp_path: Path) -> dict[str, Any]:
    done = tao_flows("meter", "--json", str(tmp_path / "measured.json"), "--", "sleep", "1")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "measured.json").read_text())
    return found


def test_the_baseline_is_what_the_counters_drew_and_later_windows_have_it_taken_off(rest: Rest, tmp_path: Path) -> None:
    rest.tree.add_zone("intel-rapl:0", "package-0")
    rest.tree.add_zone("intel-rapl:0:0", "core")
    rest.tree.add_zone("intel-rapl:0:1", "dram")
    with rest.drawing(z0=12.5, z0_0=8.0, z0_1=2.25):
        before, asked = doctors(), metered(tmp_path)
        done = tao_flows("calibrate", "--seconds", "5", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert said.pop("path") == str(kept())
    assert said.pop("left_out") == []
    assert json.loads(kept().read_text()) == said
    baseline = Baseline.parse(said)
    assert set(baseline.domains) == {"package-0", "package-0/dram"}
    assert baseline.domains["package-0"].power_w == pytest.approx(12.5, rel=0.04)
    assert baseline.domains["package-0/dram"].power_w == pytest.approx(2.25, rel=0.04)
    assert baseline.samples == 20
    assert baseline.duration_s == pytest.approx(5.0, rel=0.2)
    assert baseline.busy_share == pytest.approx(0.005, abs=0.005)
    assert (before["status"], before["path"]) == ("absent", None)
    assert "tao-flows calibrate" in before["remedy"]
    assert asked["account"]["idle_j"] is asked["baseline"] is None
    after = doctors()
    assert (after["status"], after["path"]) == ("ready", str(kept()))
    assert "package-0 12." in after["summary"]
    assert " ± " in after["summary"]
    # Thrice the power of rest: two thirds of it are active.
    with rest.drawing(z0=37.5, z0_0=24.0, z0_1=6.75):
        measured = metered(tmp_path)
    account = measured["account"]
    assert account["idle_j"] == pytest.approx(account["counter_j"] / 3, rel=0.1)
    lines = [account[f"{line}_j"] or 0 for line in ("tasks", "overhead", "idle", "unattributed")]
    assert round(sum(lines) * 1e6) == round(account["counter_j"] * 1e6)
    assert measured["baseline"].startswith("calibrated on 20")
    report = json.loads(tao_flows("report", "latest", "--json").stdout)
    assert any("calibrated on 20" in note and " ± " in note for note in report["notes"])
    assert not any("not calibrated" in note for note in report["notes"])


def test_for_people_it_says_each_domain_with_its_spread_and_where_it_is_kept(rest: Rest) -> None:
    rest.tree.add_zone("intel-rapl:0", "package-0")
    screen, terminal = pty.openpty()
    with rest.drawing(z0=20.0):
        done = subprocess.run(
            [TAO_FLOWS, "calibrate", "--seconds", "5"],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=60,
        )
    os.close(terminal)
    drawn = b""
    try:
        while chunk := os.read(screen, 1 << 16):
            drawn += chunk
    except OSError:  # a terminal that nobody holds any more ends so
        pass
    os.close(screen)
    assert done.returncode == 0
    assert b"measuring at rest" in drawn
    first, last = done.stdout.splitlines()
    assert first.startswith("package-0: ")
    assert " W ± " in first
    assert "of 20 samples idle" in last
    assert str(kept()) in last


def test_on_a_busy_host_nothing_is_stored_and_the_earlier_calibration_stays(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest.tree.add_zone("intel-rapl:0", "package-0")
    kept().parent.mkdir()
    kept().write_text("as it was")
    monkeypatch.delenv("TAO_FLOWS_PROC_ROOT")
    monkeypatch.delenv("TAO_FLOWS_CGROUP_ROOT")
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            burner = stack.enter_context(subprocess.Popen(BURN))
            stack.callback(burner.kill)
        stack.enter_context(rest.drawing(z0=90.0))
        done = tao_flows("calibrate", "--seconds", "5", "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "CALIBRATION_BUSY" in line
    assert "calibrate again" in line
    assert kept().read_text() == "as it was"
    assert doctors()["code"] == "CALIBRATION_BAD"


def test_without_a_counter_it_says_what_doctor_says(rest: Rest) -> None:
    done = tao_flows("calibrate")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "RAPL_ABSENT" in line
    assert "modprobe intel_rapl_msr" in line
    assert not kept().exists()
    assert (doctors()["status"], doctors()["remedy"]) == ("absent", "")


def test_where_no_counter_is_asked_for_it_says_that(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "estimate")
    done = tao_flows("calibrate")
    assert done.returncode == 1
    assert "TAO_FLOWS_SOURCES" in done.stderr


@pytest.mark.parametrize("seconds", ["0", "4.9", "-60", "nan", "inf", "1e9", "soon", ""])
def test_a_wrong_number_of_seconds_is_bad_usage(rest: Rest, seconds: str) -> None:
    rest.tree.add_zone("intel-rapl:0", "package-0")
    done = tao_flows("calibrate", "--seconds", seconds)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "seconds" in done.stderr


def test_a_place_that_cannot_be_written_is_told_before_anybody_waits(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest.tree.add_zone("intel-rapl:0", "package-0")
    monkeypatch.setenv("TAO_FLOWS_CALIBRATION", "/proc/none/idle.json")
    # Its default is a minute, in which this would not return.
    done = subprocess.run([TAO_FLOWS, "calibrate"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "UNWRITABLE" in done.stderr


def test_interrupted_it_keeps_nothing(rest: Rest) -> None:
    rest.tree.add_zone("intel-rapl:0", "package-0")
    # Whoever runs the tests in the background has interrupts ignored, and children inherit that.
    command = ["env", "--default-signal=INT", TAO_FLOWS, "calibrate"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline_s = time.monotonic() + 20
    while not kept().parent.exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)
    assert running.returncode == 130
    assert os.listdir(kept().parent) == []


def test_a_calibration_that_is_not_believed_is_an_incident_and_fails_nothing(rest: Rest, tmp_path: Path) -> None:
    rest.tree.add_zone("intel-rapl:0", "package-0")
    kept().parent.mkdir()
    kept().write_text("rubbish")
    found = metered(tmp_path)
    assert found["exit_code"] == 0
    assert found["account"]["idle_j"] is None
    ledger = open_ledger(load_config().config.ledger)
    assert [incident.code for incident in ledger.incidents()] == ["CALIBRATION_BAD"]
    ledger.close()
    notes = json.loads(tao_flows("report", "latest", "--json").stdout)["notes"]
    assert any("not calibrated" in note and "tao-flows calibrate" in note for note in notes)
    row = doctors()
    assert (row["status"], row["code"]) == ("broken", "CALIBRATION_BAD")
    assert "tao-flows calibrate" in row["remedy"]


def test_a_gpu_is_calibrated_while_nobody_holds_it_and_left_out_otherwise(
    nvml_library: Callable[..., Path], rest: Rest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    state = tmp_path / "gpus"
    # Neither has an energy counter: 30 and 55 W, the second held by process 1.
    state.write_text("count 2\npower0 30000\npower1 55000\npids1 1\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library()))
    monkeypatch.setenv("FAKE_NVML_STATE", str(state))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "nvml")
    with rest.drawing():
        done = tao_flows("calibrate", "--seconds", "5", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["domains"]) == {"gpu-0"}
    assert said["domains"]["gpu-0"]["power_w"] == pytest.approx(30.0, rel=0.01)
    assert said["left_out"] == ["gpu-1"]
