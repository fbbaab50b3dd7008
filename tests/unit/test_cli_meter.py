"""``tao-flows meter`` as a person runs it: the installed command, real processes, counters that are files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.testing import INTEL_RANGE_UJ, PowercapTree

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")
Run = Callable[..., "Metered"]

TREE = """
import sys
from pathlib import Path
from tao_flows.testing import PowercapTree
tree = PowercapTree(Path(sys.argv[1]))
"""


class Metered:
    """What a run of ``tao-flows meter`` left."""

    def __init__(self, done: subprocess.CompletedProcess[bytes], json_path: Path) -> None:
        self.status = done.returncode
        self.out = done.stdout
        self.err = done.stderr.decode()
        written = json_path.read_text(encoding="utf-8") if json_path.exists() else ""
        self.json: dict[str, Any] = json.loads(written, parse_constant=_not_json) if written else {}

    def domain(self, name: str) -> dict[str, Any]:
        return next(domain for domain in self.json["domains"] if domain["domain"] == name)

    def adds_up(self) -> bool:
        account = self.json["account"]
        names = ("tasks", "overhead", "idle", "allocated_idle", "unattributed")
        lines = [round((account[f"{line}_j"] or 0) * 1e6) for line in names]
        return sum(lines) == round(account["counter_j"] * 1e6)


def _not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PowercapTree:
    tree = PowercapTree(tmp_path / "powercap")
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tree.root))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "rapl,estimate")
    return tree


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_meter(*command: str, options: Sequence[str] = ()) -> Metered:
        path = tmp_path / "measurement.json"
        arguments = [TAO_FLOWS, "meter", "--json", path, *options, "--", *command]
        return Metered(subprocess.run(arguments, capture_output=True, timeout=60), path)

    return run_meter


def moving(tree: PowercapTree, body: str) -> tuple[str, ...]:
    """A command that moves the counters of ``tree``."""
    return (sys.executable, "-c", TREE + body, str(tree.root))


def test_a_known_amount_is_reported_to_the_microjoule(tree: PowercapTree, run: Run) -> None:
    tree.add_zone("intel-rapl:0", "package-0", 987_654_321)
    metered = run(*moving(tree, "tree.move('intel-rapl:0', 12_345_678)"))
    assert metered.status == 0
    assert metered.domain("package-0")["counter_j"] == 12.345678
    assert metered.json["account"]["counter_j"] == 12.345678
    assert metered.json["account"]["idle_j"] is None
    # What the meter itself used while the command ran.
    assert 0 < metered.json["account"]["overhead_j"] < 12.345678
    assert metered.adds_up()
    energy = metered.json["energy"]
    assert energy["quality"] == "attributed"
    assert energy["sources"] == ["rapl"]
    assert 0 < energy["low_j"] <= energy["value_j"] <= energy["high_j"]
    assert energy["value_j"] <= 12.345678


def test_a_known_amount_is_reported_across_a_wrap(tree: PowercapTree, run: Run) -> None:
    tree.add_zone("intel-rapl:0", "package-0", INTEL_RANGE_UJ - 17)
    metered = run(*moving(tree, "tree.move('intel-rapl:0', 5_000_019)"))
    assert metered.domain("package-0")["counter_j"] == 5.000019
    assert metered.domain("package-0")["events"] == ["WRAPPED"]
    assert metered.adds_up()


def test_two_packages_and_dram_are_summed_and_what_lies_within_or_around_them_is_not(
    tree: PowercapTree, run: Run
) -> None:
    moved = {
        "0": ("package-0", 5_000_001), "0:0": ("core", 3_000_000), "0:1": ("uncore", 500_000),
        "0:2": ("dram", 700_002), "1": ("package-1", 2_000_003), "1:0": ("dram", 300_004), "2": ("psys", 9_999_999),
    }  # fmt: skip
    for zone, (name, _) in moved.items():
        tree.add_zone(f"intel-rapl:{zone}", name, 1_000)
    body = "\n".join(f"tree.move('intel-rapl:{zone}', {by_uj})" for zone, (_, by_uj) in moved.items())
    metered = run(*moving(tree, body))
    assert {domain["domain"]: domain["counter_j"] for domain in metered.json["domains"]} == {
        "package-0": 5.000001, "package-0/core": 3.0, "package-0/uncore": 0.5, "package-0/dram": 0.700002,
        "package-1": 2.000003, "package-1/dram": 0.300004, "psys": 9.999999,
    }  # fmt: skip
    assert metered.json["account"]["counter_j"] == 8.00001
    assert metered.domain("psys")["task_j"] is metered.domain("package-0/core")["task_j"] is None
    assert metered.adds_up()


def test_zones_that_mirror_one_counter_are_counted_once(tree: PowercapTree, run: Run) -> None:
    for die in (0, 1):
        tree.add_zone(f"intel-rapl:{die}", f"package-0-die-{die}", 44)
    metered = run(*moving(tree, "tree.move('intel-rapl:0', 4_000_000)\ntree.move('intel-rapl:1', 4_000_000)"))
    assert metered.json["account"]["counter_j"] == 4.0
    assert metered.domain("package-0-die-1")["events"] == ["MIRROR_OF package-0-die-0"]
    assert not metered.domain("package-0-die-1")["counted"]


@pytest.mark.parametrize(
    ("body", "event"),
    [("tree.vanish('intel-rapl:0')", "READ_VANISHED"), ("tree.rubbish('intel-rapl:0')", "READ_RUBBISH")],
)
def test_a_counter_that_fails_midway_is_unknown_and_the_command_has_its_way(
    tree: PowercapTree, run: Run, body: str, event: str
) -> None:
    tree.add_zone("intel-rapl:0", "package-0", 5)
    metered = run(*moving(tree, f"{body}\nprint('done', flush=True)\nsys.exit(9)"))
    assert metered.status == metered.json["exit_code"] == 9
    assert metered.out == b"done\n"
    assert metered.domain("package-0")["counter_j"] is None
    assert metered.domain("package-0")["events"] == [event]
    assert metered.domain("package-0")["quality"] == metered.json["energy"]["quality"] == "unknown"
    assert metered.json["energy"]["value_j"] is None
    assert metered.json["energy"]["unknown_parts"] == ["package-0"]
    assert metered.json["account"]["counter_j"] is None
    assert metered.json["account"]["tasks_j"] is None


def test_a_counter_that_fails_midway_and_comes_back_is_unknown_all_the_same(tree: PowercapTree, run: Run) -> None:
    tree.add_zone("intel-rapl:0", "package-0", 5)
    body = (
        "import time\ntree.rubbish('intel-rapl:0')\ntime.sleep(0.8)\n"
        "tree.set('intel-rapl:0', 9_000_000, replace=True)\ntime.sleep(0.3)"
    )
    metered = run(*moving(tree, body))
    assert metered.status == 0
    assert metered.domain("package-0")["counter_j"] is None
    assert metered.json["energy"]["value_j"] is None


@pytest.fixture
def denied(tree: PowercapTree, monkeypatch: pytest.MonkeyPatch) -> PowercapTree:
    tree.add_zone("intel-rapl:0", "package-0")
    tree.deny("intel-rapl:0")
    monkeypatch.delenv("TAO_FLOWS_SOURCES")
    return tree


def unprivileged(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs our command without root's right to read every file, where we are root."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    return subprocess.run([*drop, TAO_FLOWS, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("denied")
def test_counters_that_may_not_be_read_are_told_with_the_remedy_and_the_estimate_stands_in(tmp_path: Path) -> None:
    done = unprivileged("meter", "--json", tmp_path / "m.json", "--", "sh", "-c", "exit 5")
    assert done.returncode == 5, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "RAPL_PERMISSION" in line]
    assert "energy_uj" in line
    assert "run the node agent as root" in line
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["energy"]["quality"] == "estimated"
    assert found["account"]["counter_j"] is None
    (rejected,) = [each for each in found["rejected"] if each["id"] == "rapl"]
    assert (rejected["status"], rejected["code"]) == ("denied", "RAPL_PERMISSION")
    assert rejected["remedy"]


@pytest.mark.usefixtures("denied")
def test_doctor_tells_counters_that_may_not_be_read_with_the_remedy() -> None:
    done = unprivileged("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rapl = next(source for source in found["sources"] if source["id"] == "rapl")
    assert (rapl["status"], rapl["code"]) == ("denied", "RAPL_PERMISSION")
    assert "run the node agent as root" in rapl["remedy"]
    assert found["chosen"]["energy"] == ["estimate"]


def test_where_no_process_can_be_started_one_line_says_so() -> None:
    code = (
        "import errno, os\n"
        "def fork(): raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "os.fork = fork\n"
        "from tao_flows.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "meter", "true"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("tao-flows: no process can be started: Resource temporarily unavailable; ")
    assert line.endswith("[NO_PROCESS]")


def test_the_document_has_the_fields_of_the_contract(tree: PowercapTree, run: Run) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    found = run(*moving(tree, "tree.move('intel-rapl:0', 5)"), options=["--label", "index"]).json
    assert found["schema"] == "tao-flows/measurement/1"
    assert found["label"] == "index"
    assert found["command"][0] == sys.executable
    assert found["wall_s"] > 0
    assert found["cpu_s"] > 0
    assert found["cpu_source"] in {"cgroup", "perf", "wait4"}
    assert found["power_w"] == pytest.approx(found["energy"]["value_j"] / found["wall_s"], rel=0.5)
    assert set(found["energy"]) >= {"value_j", "low_j", "high_j", "quality", "sources", "coverage"}
    (domain,) = found["domains"]
    assert set(domain) >= {"domain", "source", "counter_j", "idle_j", "task_j", "quality", "events"}
    assert set(found["account"]) >= {"counter_j", "tasks_j", "overhead_j", "idle_j", "unattributed_j"}
    assert found["account"]["allocated_idle_j"] is None  # no GPU is read here
    assert found["method"]
    assert isinstance(found["events"], list)


def test_without_a_counter_the_document_names_the_model_and_its_interval(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tmp_path / "none"))
    metered = run(sys.executable, "-c", "sum(range(10**6))")
    found = metered.json
    assert found["energy"]["quality"] == "estimated"
    assert found["energy"]["low_j"] == pytest.approx(found["energy"]["value_j"] / 2, abs=1e-5)
    assert found["energy"]["high_j"] == pytest.approx(found["energy"]["value_j"] * 2, abs=1e-5)
    assert "vcpu-minmax-memory/1" in found["model"]
    assert found["account"]["counter_j"] is None
    assert {each["code"] for each in found["rejected"]} >= {"RAPL_ABSENT"}
    assert metered.err == ""


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + signal.SIGTERM), ("kill -KILL $$", 128 + signal.SIGKILL)],
)
def test_the_commands_own_status_is_returned(run: Run, script: str, status: int) -> None:
    metered = run("sh", "-c", script)
    assert metered.status == metered.json["exit_code"] == status


def test_a_command_that_cannot_run_has_the_status_a_shell_would_give_and_one_line(run: Run, tmp_path: Path) -> None:
    missing = run("no-such-command-here")
    assert missing.status == missing.json["exit_code"] == 127
    assert missing.err == "tao-flows: no-such-command-here: command not found\n"
    directory = run(str(tmp_path))
    assert directory.status == 126
    assert directory.err == f"tao-flows: {tmp_path}: Is a directory\n"


def test_a_signal_is_passed_on_and_the_measurement_is_still_written(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    command = [TAO_FLOWS, "meter", "--json", path, "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got it\n"
        assert process.wait(timeout=30) == 3
    assert json.loads(path.read_text())["exit_code"] == 3


def test_standard_streams_are_the_commands_own_to_the_byte(run: Run, tmp_path: Path) -> None:
    blob = bytes(range(256)) * 300
    source = tmp_path / "blob"
    source.write_bytes(blob)
    metered = run("sh", "-c", f"cat '{source}'; echo theirs >&2")
    assert metered.out == blob
    assert metered.err == "theirs\n"
    done = subprocess.run([TAO_FLOWS, "meter", "cat"], input=blob, capture_output=True, timeout=60)
    assert done.stdout == blob


def test_without_json_one_line_for_people_goes_to_standard_error() -> None:
    done = subprocess.run([TAO_FLOWS, "meter", "echo", "hello"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == "hello\n"
    first, *_ = done.stderr.splitlines()
    assert first.startswith("echo: ")
    assert " estimated, " in first
    assert "CPU" in first


def test_an_unknown_figure_is_told_to_people_with_where_to_look(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    command = [TAO_FLOWS, "meter", *moving(tree, "tree.vanish('intel-rapl:0')")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    first, second = done.stderr.splitlines()
    assert ": unknown, unknown, " in first
    assert second == "  unknown: package-0; tao-flows doctor says why"


def bad_usage(*arguments: str) -> str:
    """The one line that bad usage is answered with."""
    done = subprocess.run([TAO_FLOWS, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tao-flows: ")
    return line


@pytest.mark.parametrize("make", ["missing/m.json", "directory", "read-only"])
def test_a_measurement_that_cannot_be_written_is_told_before_the_command_runs(tmp_path: Path, make: str) -> None:
    path = tmp_path / make
    if make == "directory":
        path.mkdir()
    elif make == "read-only":
        path = Path("/proc/version")
    ran = tmp_path / "ran"
    line = bad_usage("meter", "--json", str(path), "--", "touch", str(ran))
    assert str(path) in line
    assert "[UNWRITABLE]" in line
    assert not ran.exists()


def test_a_measurement_that_cannot_be_written_after_all_leaves_the_commands_status() -> None:
    command = [TAO_FLOWS, "meter", "--json", "/dev/full", "--", "sh", "-c", "exit 4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr == "tao-flows: the measurement could not be written: /dev/full: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["meter"], "there is no command to run; give it after --"),
        (["meter", "--"], "there is no command to run"),
        (["meter", "--", ""], "there is no command to run"),
        (["meter", "--nope", "x"], "No such option: --nope"),
        (["meter", "--json"], "'--json' requires an argument"),
        (["doctor", "--nope"], "No such option: --nope"),
        (["doctor", "extra"], "extra"),
        (["report", "--nope"], "No such option: --nope"),
        (["decide"], "Missing argument 'FILE'"),
        (["decide", "--nope"], "No such option: --nope"),
        (["export", "--nope"], "No such option: --nope"),
        (["config", "--engine", "zzz"], "'zzz' is not one of"),
        (["nope"], "No such command 'nope'"),
        (["--nope"], "No such option: --nope"),
    ],
)
def test_bad_usage_is_one_line_that_says_what_to_do(arguments: list[str], says: str) -> None:
    line = bad_usage(*arguments)
    assert says in line
    assert line.endswith(("--help shows how [BAD_USAGE]", "give it after --: tao-flows meter -- CMD [NO_COMMAND]"))


@pytest.mark.parametrize(
    ("name", "value"), [("TAO_FLOWS_MODE", "bogus"), ("TAO_FLOWS_SOURCES", "bogus"), ("TAO_FLOWS_CONFIG", "/none.toml")]
)
def test_a_wrong_setting_is_one_line_and_the_command_does_not_run(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    ran = tmp_path / "ran"
    assert value in bad_usage("meter", "--", "touch", str(ran))
    assert not ran.exists()


def test_help_and_no_arguments_show_what_there_is() -> None:
    for arguments in ([], ["--help"]):
        done = subprocess.run([TAO_FLOWS, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        for command in ("doctor", "meter", "report", "decide", "export", "config"):
            assert f"  {command} " in done.stdout


def test_secrets_in_the_command_line_are_kept_nowhere(run: Run, tmp_path: Path) -> None:
    metered = run("true", "--password", "hunter2", "--token=hunter3", "https://bob:hunter4@example.org/")
    assert metered.json["command"] == [
        "true", "--password", "[redacted]", "--token=[redacted]", "https://[redacted]@example.org/",
    ]  # fmt: skip
    kept = [path for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*") if path.is_file()]
    assert kept
    for path in [*kept, tmp_path / "measurement.json"]:
        assert b"hunter" not in path.read_bytes(), path


def test_the_ledger_holds_the_run_with_its_state_its_energy_and_its_account(tree: PowercapTree, run: Run) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    run(*moving(tree, "tree.move('intel-rapl:0', 3_000_000)\nsys.exit(1)"), options=["--label", "job"])
    ledger = open_ledger(f"sqlite:///{os.environ['XDG_STATE_HOME']}/tao-flows/ledger.db")
    (found,) = ledger.runs()
    assert (found.engine, found.flow, found.state) == ("meter", "job", "failed")
    ref = RunRef(found.engine, found.namespace, found.run_id)
    (task,) = ledger.tasks(ref)
    assert task.state.value == "failed"
    assert task.measurement is not None
    assert task.measurement.account.counter_uj == 3_000_000
    (host,) = ledger.accounts(ref)
    assert host.account.counter_uj == 3_000_000
    ledger.close()


def test_a_run_whose_meter_was_killed_is_shown_as_lost(tmp_path: Path) -> None:
    script = f"touch '{tmp_path}/ready'; while kill -0 $PPID 2>/dev/null; do sleep 0.05; done"
    process = subprocess.Popen([TAO_FLOWS, "meter", "--label", "doomed", "--", "sh", "-c", script])
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = subprocess.run([TAO_FLOWS, "report", "latest", "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tasks"][0]["state"] == "lost"


@pytest.mark.parametrize("ledger", ["/proc/none/ledger.db", "/dev/null"])
def test_a_ledger_out_of_reach_changes_nothing_for_the_command(
    tree: PowercapTree, run: Run, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", ledger)
    tree.add_zone("intel-rapl:0", "package-0")
    metered = run(*moving(tree, "tree.move('intel-rapl:0', 8)\nsys.exit(6)"))
    assert metered.status == 6
    assert metered.domain("package-0")["counter_j"] == 8e-6
    assert "LEDGER" in metered.err
    assert "Traceback" not in metered.err


def test_the_counters_of_two_gpus_are_two_domains(
    run: Run, nvml_library: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    state = tmp_path / "gpus"
    state.write_text("count 2\nenergy0 1000\nenergy1 70000\nutil0 none\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library()))
    monkeypatch.setenv("FAKE_NVML_STATE", str(state))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "nvml,estimate")
    script = (
        f"printf 'count 2\\nenergy0 6500\\nenergy1 70250\\npids0 %s\\nutil0 none\\n' $$ > '{state}.new';"
        f"mv '{state}.new' '{state}'; sleep 0.7"
    )
    metered = run("sh", "-c", script)
    assert metered.status == 0, metered.err
    gpus = [domain for domain in metered.json["domains"] if domain["source"] == "nvml"]
    assert [(gpu["domain"], gpu["counter_j"]) for gpu in gpus] == [("gpu-0", 5.5), ("gpu-1", 0.25)]
    assert gpus[0]["task_j"] == 5.5
    assert gpus[0]["events"] == ["GPU_HELD_ALONE"]
    assert gpus[1]["task_j"] == 0
    assert gpus[1]["events"] == ["GPU_NOT_HELD"]
    assert metered.json["account"]["counter_j"] == 5.75
    assert metered.json["energy"]["quality"] == "estimated"


def test_a_gpu_held_and_not_used_is_a_line_of_its_own_and_a_shared_one_is_split_by_utilisation(
    run: Run, nvml_library: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    state = tmp_path / "gpus"
    state.write_text("count 2\nenergy0 0\nenergy1 0\nutil0 none\nutil1 none\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library()))
    monkeypatch.setenv("FAKE_NVML_STATE", str(state))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "nvml")
    text = "count 2\\nenergy0 5500\\nenergy1 1000\\npids0 %s\\nutil0 none\\npids1 %s,1\\nutil1 %s:30,1:10\\n"
    script = f"printf '{text}' $$ $$ $$ > '{state}.new'; mv '{state}.new' '{state}'; sleep 2.6"
    metered = run("sh", "-c", script)
    assert metered.status == 0, metered.err
    held, shared = metered.domain("gpu-0"), metered.domain("gpu-1")
    assert (held["task_j"], held["allocated_idle_j"], held["events"]) == (0, 5.5, ["GPU_HELD_IDLE"])
    assert (shared["task_j"], shared["allocated_idle_j"]) == (0.75, 0)
    assert shared["events"] == ["GPU_SHARED_BY_UTILISATION"]
    assert metered.json["account"]["allocated_idle_j"] == 5.5
    assert metered.json["energy"]["value_j"] == 0.75
    assert metered.json["energy"]["quality"] == "attributed"
    assert metered.adds_up()
