"""Discovery: what is used, and what is said of the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tao_flows.clock import SystemClock
from tao_flows.errors import ConfigError
from tao_flows.records import Diagnosis
from tao_flows.telemetry.discover import Discovery, discover
from tao_flows.testing import PowercapTree

REPOSITORY = Path(__file__).parents[2]


def found(root: Path, sources: str | None = None) -> Discovery:
    return discover(SystemClock(), sources=(sources or "").split(","), powercap_root=root)


def rows(discovery: Discovery) -> dict[str, Diagnosis]:
    return {diagnosis.id: diagnosis for diagnosis in discovery.diagnoses}


def codes(discovery: Discovery) -> dict[str, tuple[str, str]]:
    return {diagnosis.id: (diagnosis.status, diagnosis.code) for diagnosis in discovery.diagnoses}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    tree = PowercapTree(tmp_path / "powercap")
    tree.add_zone("intel-rapl:0", "package-0")
    tree.add_zone("intel-rapl:0:0", "core")
    return tree.root


def test_a_cpu_counter_is_used_and_the_estimate_is_ready_and_not_chosen(package: Path) -> None:
    discovery = found(package, "rapl,estimate")
    assert [source.id for source in discovery.sources] == ["rapl"]
    assert discovery.estimator is None
    assert codes(discovery) == {"rapl": ("ready", "READY"), "estimate": ("ready", "NOT_CHOSEN")}
    assert rows(discovery)["rapl"].domains == ("package-0", "package-0/core")


def test_without_a_counter_the_estimate_is_used_and_the_rejection_is_kept(tmp_path: Path) -> None:
    discovery = found(tmp_path / "none", "rapl,estimate")
    assert discovery.sources == ()
    assert discovery.estimator is not None
    assert codes(discovery) == {"rapl": ("absent", "RAPL_ABSENT"), "estimate": ("ready", "READY")}
    assert "modprobe intel_rapl_msr" in rows(discovery)["rapl"].remedy
    assert rows(discovery)["estimate"].summary == discovery.estimator.model


def test_without_a_counter_or_the_estimate_there_is_nothing_and_it_is_said(tmp_path: Path) -> None:
    discovery = found(tmp_path / "none", "rapl")
    assert discovery.sources == ()
    assert discovery.estimator is None
    assert codes(discovery) == {"rapl": ("absent", "RAPL_ABSENT")}


def test_the_estimate_alone_ignores_a_counter_that_is_there(package: Path) -> None:
    discovery = found(package, "estimate")
    assert discovery.sources == ()
    assert discovery.estimator is not None
    assert codes(discovery) == {"estimate": ("ready", "READY")}


@pytest.mark.parametrize("sources", [None, "", " , "])
def test_unset_or_empty_means_rapl_nvml_and_the_estimate(package: Path, sources: str | None) -> None:
    assert [diagnosis.id for diagnosis in found(package, sources).diagnoses] == ["rapl", "nvml", "estimate"]


def test_diagnoses_come_in_the_order_asked_for_and_once(package: Path) -> None:
    discovery = found(package, "Estimate, rapl,RAPL ,estimate")
    assert [diagnosis.id for diagnosis in discovery.diagnoses] == ["estimate", "rapl"]
    assert [source.id for source in discovery.sources] == ["rapl"]


def test_an_unknown_source_is_a_configuration_error_that_names_the_allowed_ones(package: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        found(package, "rapl,powermeter")
    assert caught.value.code == "BAD_SOURCES"
    assert "'powermeter'" in caught.value.summary
    for name in ("rapl", "pyrapl", "nvml", "estimate"):
        assert name in caught.value.remedy


def test_a_domain_that_cannot_be_read_is_told_in_the_row_of_its_source(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / "powercap")
    tree.add_zone("intel-rapl:0", "package-0", range_uj=None)
    tree.add_zone("intel-rapl:1", "package-1")
    tree.rubbish("intel-rapl:1")
    summary = rows(found(tree.root, "rapl"))["rapl"].summary
    assert "package-1 cannot be read: READ_RUBBISH" in summary
    assert "package-0: RANGE_UNKNOWN" in summary


def test_the_cpu_of_another_proc_root_is_the_one_estimated(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n")
    estimator = discover(SystemClock(), sources=["estimate"], proc_root=tmp_path).estimator
    assert estimator is not None
    assert estimator.cpu.microarchitecture == "Neoverse N1"


def test_a_source_that_breaks_in_an_unforeseen_way_is_broken_and_the_others_go_on(
    package: Path, tmp_path: Path
) -> None:
    (tmp_path / "pynvml.py").write_text("raise ZeroDivisionError('in the driver')\n")
    code = """
import json, sys
from pathlib import Path
from tao_flows.clock import SystemClock
from tao_flows.telemetry.discover import discover
d = discover(SystemClock(), sources=["nvml", "rapl"], powercap_root=Path(sys.argv[1]))
print(json.dumps([[s.id for s in d.sources], {x.id: x.to_json() for x in d.diagnoses}]))
"""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)]),
    }
    command = [sys.executable, "-c", code, str(package)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    sources, diagnoses = json.loads(done.stdout)
    assert sources == ["rapl"]
    assert diagnoses["nvml"]["status"] == "broken"
    assert diagnoses["nvml"]["code"] == "NVML_BROKEN"
    assert diagnoses["nvml"]["summary"] == "ZeroDivisionError: in the driver"
    assert diagnoses["nvml"]["remedy"]


PYRAPL = """
import json, logging, os, sys
from pathlib import Path
from tao_flows.clock import SystemClock
from tao_flows.telemetry.discover import discover
from tao_flows.testing import PowercapTree

def rows(sources):
    found = discover(SystemClock(), sources=sources.split(","))
    return found, {d.id: d.to_json() for d in found.diagnoses}

tree = PowercapTree(Path("/sys/class/powercap"))
cpus = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
sockets = {path.read_text().strip() for path in cpus}
_, absent = rows("pyrapl,estimate")
for socket in sorted(sockets):
    tree.add_zone(f"intel-rapl:{socket}", f"package-{socket}", 1000)
    tree.add_zone(f"intel-rapl:{socket}:0", "dram", 50)
used, chosen = rows("pyrapl,rapl,estimate")
source = used.sources[0]
readings = [source.read()]
tree.move("intel-rapl:0", 234); readings.append(source.read())
tree.rubbish("intel-rapl:0"); readings.append(source.read())
tree.rubbish("intel-rapl:0", "-1"); readings.append(source.read())
source.close(); source.close(); readings.append(source.read())
(tree.path("intel-rapl:0") / "name").write_text("package-0-die-0")
tree.add_zone(f"intel-rapl:{len(sockets)}", "package-0-die-1")
_, dies = rows("pyrapl")
tree.vanish(f"intel-rapl:{len(sockets)}")
(tree.path("intel-rapl:0") / "name").write_text("package-0\\n")
tree.deny("intel-rapl:0")
os.setuid(65534)
_, denied = rows("pyrapl")
print(json.dumps({
    "absent": absent, "chosen": chosen, "dies": dies, "denied": denied, "estimated": used.estimator is not None,
    "domains": [[d.id, d.kind, d.counted, d.source, d.events] for d in source.domains],
    "readings": [[[r.raw_uj, r.error] for r in reading[:2]] for reading in readings],
    "handlers": len(logging.root.handlers),
}))
"""


def in_a_private_sys(code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a /sys/class of its own: pyRAPL's path cannot be changed."""
    script = 'mount -t tmpfs none /sys/class && exec "$0" -c "$1"'
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, code], env=env, capture_output=True, text=True, timeout=60
    )


def test_pyrapl_is_used_when_named_first_and_its_failures_are_diagnoses() -> None:
    pytest.importorskip("pyRAPL", reason="pyRAPL is not installed")
    try:
        trial = in_a_private_sys("pass")
    except FileNotFoundError:
        pytest.skip("unshare is not installed: pyRAPL's fixed path cannot be put elsewhere")
    if trial.returncode != 0:
        pytest.skip(f"a mount namespace is not permitted here: {trial.stderr.strip()}")
    done = in_a_private_sys(PYRAPL)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["absent"]["pyrapl"]["code"] == "PYRAPL_ABSENT"
    assert seen["absent"]["pyrapl"]["remedy"]
    assert seen["chosen"]["pyrapl"]["code"] == "READY"
    assert seen["chosen"]["rapl"]["code"] == "NOT_CHOSEN"
    assert not seen["estimated"]
    assert seen["domains"][:2] == [
        ["package-0", "package", True, "pyrapl", ["RANGE_UNKNOWN"]],
        ["package-0/dram", "dram", True, "pyrapl", ["RANGE_UNKNOWN"]],
    ]
    assert seen["readings"] == [
        [[1000, ""], [50, ""]],
        [[1234, ""], [50, ""]],
        [[None, "READ_RUBBISH"], [None, "READ_RUBBISH"]],
        [[None, "READ_RUBBISH"], [50, ""]],
        [[None, "READ_CLOSED"], [None, "READ_CLOSED"]],
    ]
    assert seen["dies"]["pyrapl"]["status"] in ("absent", "broken")
    assert (seen["denied"]["pyrapl"]["status"], seen["denied"]["pyrapl"]["code"]) == ("denied", "PYRAPL_PERMISSION")
    assert seen["handlers"] == 0


def test_a_missing_pyrapl_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "pyRAPL.py").write_text("raise ImportError('not here')\n")
    code = """
import json
from tao_flows.clock import SystemClock
from tao_flows.telemetry.discover import discover
print(json.dumps(discover(SystemClock(), sources=["pyrapl"]).diagnoses[0].to_json()))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    assert (row["status"], row["code"]) == ("absent", "PYRAPL_EXTRA_MISSING")
    assert row["remedy"] == "pip install 'tao-flows[pyrapl]'"
