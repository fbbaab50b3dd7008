"""``tao-flows doctor``: what it says, and in what form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tao_flows.ledger.spool import Spool
from tao_flows.testing import PowercapTree

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TAO_FLOWS, "doctor", *arguments], capture_output=True, text=True, timeout=60)


def examined() -> dict[str, Any]:
    done = doctor("--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(found: dict[str, Any], source: str) -> dict[str, Any]:
    return next(each for each in found["sources"] if each["id"] == source)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PowercapTree:
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tmp_path / "powercap"))
    return PowercapTree(tmp_path / "powercap")


def test_the_document_has_the_fields_of_the_contract(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    found = examined()
    assert set(found) >= {"sources", "chosen", "agent", "ledger", "engines"}
    assert set(found["chosen"]) >= {"energy", "cpu_time"}
    for source in found["sources"]:
        assert set(source) == {"id", "kind", "status", "domains", "code", "summary", "remedy"}
        assert source["kind"] in {"energy", "cpu_time", "pressure"}
        assert source["status"] in {"ready", "denied", "absent", "broken"}
        assert source["summary"]
        # What is ready needs no remedy; what is not has its reason and mostly one.
        assert source["status"] != "ready" or not source["remedy"]
        assert source["status"] == "ready" or source["code"]
    assert len({source["id"] for source in found["sources"]}) == len(found["sources"])


def test_a_counter_that_can_be_read_is_chosen_and_the_estimate_waits(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    tree.add_zone("intel-rapl:0:0", "core")
    found = examined()
    assert row(found, "rapl")["status"] == "ready"
    assert row(found, "rapl")["domains"] == ["package-0", "package-0/core"]
    assert row(found, "estimate")["code"] == "NOT_CHOSEN"
    assert found["chosen"]["energy"][0] == "rapl"
    assert "estimate" not in found["chosen"]["energy"]
    assert found["chosen"]["cpu_time"] in {"cgroup", "perf", "wait4"}
    assert row(found, found["chosen"]["cpu_time"])["status"] == "ready"


def test_without_a_counter_the_reason_and_the_remedy_are_told_and_the_estimate_is_chosen(tree: PowercapTree) -> None:
    tree.root.rmdir()
    found = examined()
    rapl = row(found, "rapl")
    assert (rapl["status"], rapl["code"]) == ("absent", "RAPL_ABSENT")
    assert "modprobe intel_rapl_msr" in rapl["remedy"]
    assert found["chosen"]["energy"] == ["estimate"]
    assert row(found, "estimate")["domains"] == ["cpu", "memory"]


def test_a_counter_that_holds_rubbish_is_broken(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    tree.rubbish("intel-rapl:0")
    rapl = row(examined(), "rapl")
    assert (rapl["status"], rapl["code"]) == ("broken", "RAPL_UNREADABLE")
    assert "package-0 cannot be read: READ_RUBBISH" in rapl["summary"]
    assert rapl["remedy"]


def test_only_the_sources_asked_for_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "estimate")
    energy = [source["id"] for source in examined()["sources"] if source["kind"] == "energy"]
    assert energy == ["estimate"]


def test_gpus_are_told(nvml_library: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    state = tmp_path / "gpus"
    state.write_text("count 2\nenergy0 1\npower1 5000\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library()))
    monkeypatch.setenv("FAKE_NVML_STATE", str(state))
    monkeypatch.setenv("TAO_FLOWS_SOURCES", "nvml,estimate")
    found = examined()
    assert row(found, "nvml")["domains"] == ["gpu-0", "gpu-1"]
    assert "gpu-1: INTEGRATED_POWER" in row(found, "nvml")["summary"]
    assert found["chosen"]["energy"] == ["nvml", "estimate"]


def test_processes_that_cannot_be_seen_are_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAO_FLOWS_PROC_ROOT", str(tmp_path))
    polling = row(examined(), "polling")
    assert (polling["status"], polling["code"]) == ("absent", "PROC_UNREADABLE")
    assert "TAO_FLOWS_PROC_ROOT" in polling["remedy"]


def test_a_ledger_out_of_reach_is_broken_with_its_remedy_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", "/proc/none/ledger.db")
    found = examined()
    assert found["ledger"]["status"] == "broken"
    assert found["ledger"]["code"].startswith("LEDGER_")
    assert found["ledger"]["remedy"]
    assert found["sources"]


def test_the_password_of_a_ledger_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", "postgresql://bob:hunter2@db/x")
    done = doctor("--json")
    assert "hunter2" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["ledger"]["url"] == "postgresql://bob:***@db/x"


def test_the_runs_of_a_ledger_are_counted() -> None:
    assert examined()["ledger"]["summary"] == "0 runs recorded"
    subprocess.run([TAO_FLOWS, "meter", "--", "true"], capture_output=True, check=True, timeout=60)
    assert examined()["ledger"]["summary"] == "1 run recorded"


@pytest.mark.parametrize(("engine", "package"), [("prefect", "prefect"), ("airflow", "apache-airflow")])
def test_engines_are_told_with_their_version_or_how_to_get_them(engine: str, package: str) -> None:
    told = examined()["engines"][engine]
    try:
        assert (told["status"], told["version"]) == ("ready", version(package))
    except PackageNotFoundError:
        assert (told["status"], told["version"]) == ("absent", None)
        assert f"pip install 'tao-flows[{engine}]'" in told["remedy"]


def test_a_variable_that_is_likely_mistyped_is_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_MOED", "off")
    assert examined()["remarks"] == ["TAO_FLOWS_MOED is no setting; did you mean TAO_FLOWS_MODE?"]
    assert "did you mean TAO_FLOWS_MODE?" in doctor().stdout


def test_a_wrong_setting_is_one_line() -> None:
    done = subprocess.run(
        [TAO_FLOWS, "doctor", "--json"],
        env={**os.environ, "TAO_FLOWS_SOURCES": "powermeter"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "'powermeter' is no energy source" in line


def test_for_people_it_fits_in_eighty_columns_and_says_the_same(
    tree: PowercapTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.add_zone("intel-rapl:0", "package-0 [bold]x[/bold]")
    tree.rubbish("intel-rapl:0")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TAO_FLOWS_LEDGER", "/proc/[red]none/ledger.db")
    found, done = examined(), doctor()
    assert done.returncode == 0
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = "".join(done.stdout.split())
    for source in found["sources"]:
        for text in (source["id"], source["status"]):
            assert text in said
    for text in ("RAPL_UNREADABLE", "->", "estimate", "/proc/[red]none", found["ledger"]["code"]):
        assert text in said
    narrow = "".join(line[32:].strip() for line in done.stdout.splitlines())
    assert row(found, "rapl")["remedy"].replace(" ", "") in narrow.replace(" ", "")


def test_a_wrong_field_in_the_pools_file_is_a_broken_row_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = tmp_path / "pools.toml"
    pools.write_text('[[pools]]\npool_id = "north"\nzone = "SE"\n')
    monkeypatch.setenv("TAO_FLOWS_POOLS", str(pools))
    assert (examined()["pools"]["status"], examined()["pools"]["summary"]) == ("ready", f"north in {pools}")
    pools.write_text('[[pools]]\npool_id = "north"\nzoone = "SE"\n')
    row = examined()["pools"]
    assert (row["status"], row["code"]) == ("broken", "BAD_POOL")
    assert "'zoone'" in row["summary"]
    assert "'zone'" in row["remedy"]


def test_what_waits_for_the_ledger_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (examined()["spool"]["summary"], examined()["spool"]["size_bytes"]) == ("nothing waits", 0)
    monkeypatch.setenv("TAO_FLOWS_LEDGER", "/proc/none/ledger.db")
    subprocess.run([TAO_FLOWS, "meter", "--", "true"], capture_output=True, check=True, timeout=60)
    spool = examined()["spool"]
    assert (spool["status"], spool["code"], spool["segments"]) == ("ready", "SPOOL_WAITING", 1)
    assert spool["size_bytes"] > 0
    assert spool["since"]
    assert "tao-flows spool flush" in spool["remedy"]
    assert "records wait in" in " ".join(doctor().stdout.split())


def test_records_that_were_refused_for_good_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", f"spool://{tmp_path}/spool")
    Spool(tmp_path / "spool").set_aside([b"{}"])
    spool = examined()["spool"]
    assert (spool["status"], spool["code"], spool["path"]) == ("broken", "SPOOL_REFUSED", f"{tmp_path}/spool")
    assert "--refused" in spool["remedy"]


def test_an_engine_that_is_not_here_cannot_be_examined() -> None:
    if find_spec("airflow") is not None:
        assert "deployment" not in examined()
        return
    done = doctor("--engine", "airflow", "--json")
    assert done.returncode == 2
    assert "pip install 'tao-flows[airflow]'" in done.stderr
