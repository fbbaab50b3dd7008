"""What a process says of what it runs in, when it says so, and how long its record is to be kept."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from recorded_run import RUN, S, problems, task

from tao_flows.config import ConfigWatcher, load_config
from tao_flows.errors import ConfigError
from tao_flows.governance.environment import commit_of, environment_of, packages
from tao_flows.governance.retention import keep_until
from tao_flows.ledger import open_ledger
from tao_flows.ledger.environments import environments_of
from tao_flows.ledger.safe import SafeLedger
from tao_flows.records import TaskState
from tao_flows.runtime import build
from tao_flows.telemetry.procfs import this_segment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def watcher(tmp_path: Path) -> ConfigWatcher:
    return ConfigWatcher(arguments={"ledger": str(tmp_path / "ledger.db"), "agent": "off"}, env={"HOME": str(tmp_path)})


def test_what_a_process_runs_in_is_told_without_its_variables(
    watcher: ConfigWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "some-value-of-it")
    tao = build(watcher)
    body = environment_of(watcher.get(), tao.discovery)
    document = {"digest": "0" * 64, "processes": 1, "hosts": ["h"], "body": body}
    run = {"engine": "e", "namespace": "n", "flow": "f", "run_id": "r"}
    assert (
        problems("environments", {"schema": "tao-flows/bundle/environments/1", "run": run, "environments": [document]})
        == []
    )
    assert {"name": "pytest", "version": pytest.__version__} in body["packages"]
    assert {"name": "mode", "value": "observe", "origin": "default"} in body["settings"]
    assert "SOME_VARIABLE" not in str(body)
    assert "some-value-of-it" not in str(body)
    assert body == environment_of(watcher.get(), tao.discovery)


def test_a_process_says_it_once_after_its_first_task_has_ended(watcher: ConfigWatcher, tmp_path: Path) -> None:
    tao = build(watcher)
    process = this_segment().process
    with closing(open_ledger(str(tmp_path / "ledger.db"))) as ledger:
        tao.ledger.put_task(replace(task(), state=TaskState.RUNNING, measurement=None, ended_wall_ns=None))
        assert environments_of(ledger, [process]) == []
        tao.ledger.put_task(task())
        (first,) = environments_of(ledger, [process])
        tao.ledger.put_task(task("other"))
        tao.ledger.put_run(RUN)
        assert environments_of(ledger, [process]) == [first]
        tao.ledger.close()


def test_an_environment_that_cannot_be_told_fails_nothing_and_is_noted(
    watcher: ConfigWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    tao = build(watcher)
    monkeypatch.setattr("tao_flows.governance.environment.captured", lambda *_: 1 / 0)
    tao.ledger.put_task(task())
    assert [each.code for each in tao.incidents.of_run("")] == ["INTERNAL"]
    tao.ledger.close()


def test_the_first_end_is_told_once(tmp_path: Path) -> None:
    told: list[int] = []
    with closing(open_ledger(str(tmp_path / "l.db"))) as inner:
        ledger = SafeLedger(inner, on_first_end=lambda: told.append(1))
        ledger.put_run(replace(RUN, ended_wall_ns=None))
        assert told == []
        ledger.put_run(RUN)
        ledger.put_task(task())
        assert told == [1]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("google_auth-2.43.0.dist-info", ("google-auth", "2.43.0")),
        ("zope.interface-8.0.1.dist-info", ("zope-interface", "8.0.1")),
        ("torch-2.9.0+cu128.dist-info", ("torch", "2.9.0+cu128")),
        ("old_one-1.0-py3.11.egg-info", ("old-one", "1.0")),
    ],
)
def test_packages_are_read_off_the_names_of_their_metadata(tmp_path: Path, name: str, found: tuple[str, str]) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "no-package").mkdir()
    assert packages([str(tmp_path / "absent"), str(tmp_path)]) == dict([found])


@pytest.mark.parametrize("how", ["detached", "branch", "packed", "worktree"])
def test_the_commit_of_the_code_is_read_from_gits_files(tmp_path: Path, how: str) -> None:
    git = tmp_path / "main" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n" if how != "detached" else f"{COMMIT}\n")
    code = tmp_path / "main" / "flows"
    code.mkdir()
    if how == "packed":
        (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{COMMIT} refs/heads/main\n")
    elif how == "branch":
        (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    elif how == "worktree":
        (git / "refs" / "heads" / "topic").write_text(f"{COMMIT}\n")
        own = git / "worktrees" / "topic"
        own.mkdir(parents=True)
        (own / "HEAD").write_text("ref: refs/heads/topic\n")
        (own / "commondir").write_text("../..\n")
        code = tmp_path / "topic"
        code.mkdir()
        (code / ".git").write_text(f"gitdir: {own}\n")
    assert commit_of(code) == COMMIT


@pytest.mark.parametrize("head", ["ref: refs/heads/../../../secret", "no commit at all", ""])
def test_a_commit_that_cannot_be_told_is_unknown(tmp_path: Path, head: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert commit_of(tmp_path) is None


@pytest.mark.parametrize(
    ("period", "until"),
    [
        ("10y", "2036-02-29"), ("6mo", "2026-08-29"), ("1d", "2026-03-02"), ("2w", "2026-03-15"), ("", None),
        ("99999y", None),
    ],
)  # fmt: skip
def test_a_record_is_kept_for_whole_days_by_the_calendar(period: str, until: str | None) -> None:
    at = datetime(2026, 2, 28, 23, 59, tzinfo=timezone.utc)
    assert keep_until(period, round(at.timestamp()) * S) == until


def test_a_period_that_is_none_is_refused_where_it_is_set() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(env={"TAO_FLOWS_RETENTION": "seven years", "HOME": "/nowhere"})
    assert "TAO_FLOWS_RETENTION" in str(caught.value)
