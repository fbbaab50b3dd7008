"""``tao-flows ledger`` and what ``doctor`` says of a ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import ledger_version_1 as version_1
import pytest

from tao_flows.config import TaoConfig
from tao_flows.ledger import open_ledger, schema
from tao_flows.ledger.diagnose import ledger_diagnosis
from tao_flows.records import RunRecord, Segment

TAO_FLOWS = os.path.join(sysconfig.get_path("scripts"), "tao-flows")
NOW = len(schema.MIGRATIONS)
RUN = RunRecord("prefect", "default", "nightly", "run-0001", "running", 900, Segment("node-1", "boot", 1, 1))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/ledger.db"


def tao_flows(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TAO_FLOWS_LEDGER": url, "COLUMNS": "200"}
    done = subprocess.run([TAO_FLOWS, *arguments], capture_output=True, text=True, timeout=60, env=env)
    assert "p%40ss" not in done.stdout + done.stderr
    return done


def answer(url: str, *arguments: str) -> dict[str, Any]:
    done = tao_flows(url, "ledger", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make_version_1(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, closing(open_ledger(url)) as ledger:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        with ledger.transaction() as transaction:
            transaction.change(version_1.TASK, **version_1.task_row("old"))


def test_show_tells_where_and_what_the_ledger_is_and_what_it_holds(url: str) -> None:
    with closing(open_ledger(url)) as ledger:
        ledger.put_run(RUN)
    found = answer(url, "show")
    is_shared = not url.startswith("sqlite")
    assert found["size_bytes"] > 8_192
    assert found["rows"]["runs"] == 1
    assert set(found["rows"]) == set(schema.TABLES)
    assert {name: found[name] for name in ("dialect", "shared", "schema_version", "contract", "needs_migration")} == {
        "dialect": "postgresql" if is_shared else "sqlite",
        "shared": is_shared,
        "schema_version": NOW,
        "contract": schema.CONTRACT,
        "needs_migration": False,
    }
    for_people = tao_flows(url, "ledger", "show").stdout
    assert found["ledger"] in for_people
    assert "runs" in for_people


def test_show_makes_no_ledger_where_there_is_none(url: str) -> None:
    found = answer(url, "show")
    assert (found["schema_version"], found["rows"]) == (0, None)
    assert answer(url, "show") == found
    assert "none yet" in tao_flows(url, "ledger", "show").stdout


def test_migrate_says_what_it_will_do_what_it_did_and_that_nothing_is_left(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version_1(url, monkeypatch)
    refused = tao_flows(url, "report", "latest")
    assert refused.returncode == 2
    assert "tao-flows ledger migrate" in refused.stderr
    assert answer(url, "show")["needs_migration"]
    planned = tao_flows(url, "ledger", "migrate", "--dry-run").stdout
    assert "would be brought from schema version 1" in planned
    assert all(statement in planned for statement in schema.MIGRATIONS[1])

    dry, done, again = answer(url, "migrate", "--dry-run"), answer(url, "migrate"), answer(url, "migrate")
    assert dry == {**done, "applied": False}
    assert (done["before"], done["after"], done["applied"]) == (1, NOW, True)
    assert (again["before"], again["after"], again["statements"]) == (NOW, NOW, [])
    assert "nothing to do" in tao_flows(url, "ledger", "migrate").stdout
    assert answer(url, "show")["rows"]["tasks"] == 1


@pytest.mark.parametrize("command", ["show", "migrate"])
def test_a_ledger_out_of_reach_is_said_on_one_line(command: str) -> None:
    done = tao_flows("postgresql://tao:p%40ss@127.0.0.1:1/none", "ledger", command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "LEDGER_UNREACHABLE" in done.stderr


def config_of(url: str, tmp_path: Path, mounts: str = "") -> TaoConfig:
    (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    return replace(TaoConfig(), ledger=url, proc_root=tmp_path / "proc")


def test_a_diagnosis_says_who_shares_the_ledger_and_how_many_runs_there_are(url: str, tmp_path: Path) -> None:
    with closing(open_ledger(url)) as ledger:
        ledger.put_run(RUN)
    found = ledger_diagnosis(config_of(url, tmp_path), env={})
    assert (found["status"], found["code"], found["remedy"]) == ("ready", "", "")
    assert found["summary"] == "1 run recorded"
    assert found["shared"] == (found["dialect"] == "postgresql")
    assert "p%40ss" not in str(found)


def test_a_ledger_that_waits_to_be_migrated_is_broken_with_the_remedy(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version_1(url, monkeypatch)
    found = ledger_diagnosis(config_of(url, tmp_path), env={})
    assert (found["status"], found["code"]) == ("broken", "LEDGER_OLDER")
    assert "tao-flows ledger migrate" in found["remedy"]


def test_a_file_in_a_pod_is_warned_of_and_a_server_is_not(url: str, tmp_path: Path) -> None:
    found = ledger_diagnosis(config_of(url, tmp_path), env={"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert found["status"] == "ready"
    if found["dialect"] == "sqlite":
        assert found["code"] == "LEDGER_IN_POD"
        assert "this pod alone" in found["summary"]
        assert "PostgreSQL" in found["remedy"]
    else:
        assert found["code"] == ""


ROOT = "22 1 0:21 / / rw - overlay overlay rw\n"


@pytest.mark.parametrize(
    ("mounts", "code"),
    [
        (ROOT, "LEDGER_IN_POD"),
        ("22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n", ""),
        (ROOT + "23 22 8:1 / {mount} rw - ext4 /dev/sda1 rw\n", ""),
        (ROOT + "23 22 8:1 / {mount}/led rw - ext4 /dev/sda1 rw\n", "LEDGER_IN_POD"),
        ("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:9 / {mount} rw - overlay overlay rw\n", "LEDGER_IN_POD"),
        ("", ""),
    ],
)
def test_a_file_in_a_containers_own_layer_is_warned_of(tmp_path: Path, mounts: str, code: str) -> None:
    place = tmp_path / "a place"
    mounts = mounts.format(mount=str(place).replace(" ", "\\040"))
    found = ledger_diagnosis(config_of(f"sqlite:///{place}/ledger.db", tmp_path, mounts), env={})
    assert found["code"] == code
    assert found["status"] == "ready"
