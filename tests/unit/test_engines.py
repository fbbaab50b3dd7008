"""Which processes are an engine's. Command lines and titles are as real engines had them, with other paths."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tao_flows.engines import USERS_CODE, EngineWatch, engine_of

PYTHON = "/srv/venv/bin/python"
TASK = "01a2078b-1ad1-7c0c-8b30-7f306ff4f67f"
AFTER_TITLE = ("",) * 20

# Prefect 3.8.8 and Airflow 3.3.2 with its Celery provider 3.26, uvicorn and gunicorn, started and looked at.
SEEN = [
    ("prefect server", (PYTHON, "/srv/venv/bin/prefect", "server", "start", "--host", "127.0.0.1")),
    ("prefect worker", (PYTHON, "/srv/venv/bin/prefect", "worker", "start", "--pool", "p", "--type", "process")),
    ("prefect runner", (PYTHON, "-m", "prefect.runner._workspace_supervisor", "/tmp/prefect-1/supervisor.json")),
    ("prefect flow run", (PYTHON, "-m", "prefect.engine")),
    ("airflow api-server", (PYTHON, "/srv/venv/bin/airflow", "api-server", "--port", "4290")),
    ("airflow api-server", ("airflow api_server -- host:127.0.0.1 port:4280", *AFTER_TITLE)),
    ("airflow api-server", (f"{PYTHON} /srv/venv/bin/airflow api-server",)),
    ("airflow scheduler", (PYTHON, "/srv/venv/bin/airflow", "scheduler")),
    ("airflow dag-processor", (PYTHON, "/srv/venv/bin/airflow", "dag-processor")),
    ("airflow triggerer", (PYTHON, "/srv/venv/bin/airflow", "triggerer")),
    ("airflow serve-logs", ("airflow serve-logs", *AFTER_TITLE)),
    ("airflow worker", ("airflow worker -- LocalExecutor: <idle>", *AFTER_TITLE)),
    ("airflow worker", (f"airflow worker -- LocalExecutor: {TASK}", *AFTER_TITLE)),
    ("airflow task", (f"airflow worker -- {TASK}", *AFTER_TITLE)),
    ("airflow worker", (PYTHON, "/srv/venv/bin/airflow", "celery", "worker", "-c", "2")),
    ("airflow worker", ("[celeryd: celery@vm:MainProcess] -active- (celery worker -c 2)", *AFTER_TITLE)),
]
# As the engines' sources have it.
READ = [
    (
        "prefect server",
        (PYTHON, "-m", "uvicorn", "--app-dir", "/srv", "--factory", "prefect.server.api.server:create_app"),
    ),
    ("prefect server", (PYTHON, "-m", "prefect", "server", "start")),
    ("prefect server", (PYTHON, "/srv/venv/bin/prefect", "--profile", "local", "--no-prompt", "server", "start")),
    ("prefect flow run", (PYTHON, "-u", "-X", "dev", "-m", "prefect.flow_engine")),
    ("prefect flow run", (PYTHON, "/srv/venv/bin/prefect", "flow-run", "execute", TASK)),
    ("prefect flow run", (PYTHON, "-m", "prefect.bundles.execute", "--key", "a")),
    ("prefect runner", (PYTHON, "/srv/venv/bin/prefect", "flow", "serve", "flows.py:hello")),
    ("prefect task worker", (PYTHON, "/srv/venv/bin/prefect", "task", "serve", "tasks.py:work")),
    ("airflow scheduler", (PYTHON, "-m", "airflow", "scheduler", "-D")),
    ("airflow standalone", (PYTHON, "/srv/venv/bin/airflow", "standalone")),
    ("airflow api-server", ("[ready] airflow api-server worker",)),
    ("airflow supervisor", (f"airflow supervisor: {TASK}",)),
    ("airflow supervisor", (PYTHON, "-m", "airflow.sdk.execution_time.execute_workload", "--json-path", "/tmp/in")),
]
NO_ENGINE = [
    (),
    ("", ""),
    ("vim", "prefect/server.py"),
    ("grep", "airflow", "scheduler"),
    ("grep", "airflow worker -- LocalExecutor"),
    ("tail", "-f", "/var/log/airflow/scheduler"),
    (PYTHON, "prefect/worker.py"),
    (PYTHON, "/home/me/prefect", "worker", "start"),
    (PYTHON, "airflow", "scheduler"),
    (PYTHON, "train.py", "prefect", "server", "start"),
    (PYTHON, "-c", "import prefect; prefect.serve()", "prefect", "worker", "start"),
    (PYTHON, "-m", "pytest", "-m", "prefect.engine"),
    (PYTHON, "-m", "mine.prefect.engine"),
    (PYTHON, "-m"),
    (PYTHON,),
    (PYTHON, "-m", "uvicorn", "mine.prefect:app"),
    (PYTHON, "/srv/venv/bin/prefect", "server", "stop"),
    (PYTHON, "/srv/venv/bin/prefect", "work-pool", "create", "server"),
    (PYTHON, "/srv/venv/bin/prefect", "deployment", "run", "hello/worker", "--watch"),
    (PYTHON, "/srv/venv/bin/airflow", "dags", "trigger", "scheduler"),
    ("timeout", "40", "/srv/venv/bin/prefect", "worker", "start"),
    ("bash", "-c", "airflow scheduler"),
    ("docker", "run", "apache/airflow", "airflow", "scheduler"),
    ("gunicorn: master [gunicorn]",),
    ("[celeryd: celery@vm:MainProcess] -active- (-A shop worker)",),
    ("airflow worker -- my own",),
]


@pytest.mark.parametrize(("engine", "command"), SEEN + READ)
def test_an_engines_process_is_known_by_its_command_line_or_title(engine, command):
    assert engine_of(command) == engine


@pytest.mark.parametrize("command", NO_ENGINE)
def test_what_only_speaks_of_an_engine_is_none(command):
    assert engine_of(command) is None


def test_what_runs_the_users_code_too_is_among_the_engines_that_are_found():
    assert {engine for engine, _ in SEEN + READ} >= USERS_CODE


class Proc:
    """A /proc that the test writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self, pid: int, *command: str, parent: int = 1, age_s: float = 0.0, stack: int = 7) -> None:
        ticks = round((time.clock_gettime(time.CLOCK_BOOTTIME) - age_s) * os.sysconf("SC_CLK_TCK"))
        columns = ["S", str(parent), *["0"] * 17, str(ticks), "0", "3", "0", "0", "0", str(stack), *["0"] * 24]
        (self.root / str(pid)).mkdir(exist_ok=True)
        (self.root / str(pid) / "stat").write_text(f"{pid} (python) {' '.join(columns)}\n")
        self.call(pid, *command)

    def call(self, pid: int, *command: str) -> None:
        (self.root / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in command))

    def end(self, pid: int) -> None:
        for path in (self.root / str(pid)).iterdir():
            path.unlink()
        (self.root / str(pid)).rmdir()


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


def found(watch: EngineWatch) -> list[tuple[int, str]]:
    return [(process.pid, process.engine) for process in watch.new()]


def test_an_engine_is_found_once_and_again_when_its_number_is_anothers(proc):
    watch = EngineWatch(proc.root)
    proc.start(10, PYTHON, "/srv/venv/bin/airflow", "scheduler", age_s=100)
    proc.start(11, "bash")
    assert found(watch) == [(10, "airflow scheduler")]
    assert found(watch) == []

    proc.end(10)
    assert found(watch) == []
    proc.start(10, PYTHON, "/srv/venv/bin/airflow", "triggerer")
    assert found(watch) == [(10, "airflow triggerer")]
    proc.start(10, PYTHON, "/srv/venv/bin/airflow", "triggerer", age_s=-5, stack=8)
    assert found(watch) == [(10, "airflow triggerer")]


def test_a_young_process_is_looked_at_again_and_an_old_one_is_not(proc):
    watch = EngineWatch(proc.root)
    proc.start(10, "sh", age_s=0.0)
    proc.start(11, "sh", age_s=60.0)
    assert found(watch) == []

    for pid in (10, 11):
        proc.call(pid, PYTHON, "-m", "prefect.engine")
    assert found(watch) == [(10, "prefect flow run")]


def test_a_process_that_becomes_another_part_of_its_engine_is_found_again(proc):
    watch = EngineWatch(proc.root)
    proc.start(10, f"airflow worker -- LocalExecutor: {TASK}", age_s=60)
    assert found(watch) == [(10, "airflow worker")]

    proc.call(10, f"airflow worker -- {TASK}")
    assert found(watch) == [(10, "airflow task")]


def test_an_engine_keeps_its_name_under_a_title_that_is_anyones_and_loses_it_when_it_runs_another_program(proc):
    watch = EngineWatch(proc.root)
    proc.start(10, PYTHON, "/srv/venv/bin/airflow", "api-server")
    assert found(watch) == [(10, "airflow api-server")]
    proc.call(10, "gunicorn: master [gunicorn]")
    proc.start(12, "gunicorn: worker [gunicorn]", parent=10)
    assert found(watch) == [(12, "airflow api-server")]

    proc.start(10, "make", "all", stack=8)
    proc.start(13, "gunicorn: worker [gunicorn]", parent=10)
    assert found(watch) == []


@pytest.mark.parametrize(
    "helper",
    [
        (PYTHON, "-B", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()", "--multiprocessing-fork"),
        ("[celeryd: celery@vm:ForkPoolWorker-1]",),
    ],
)
def test_a_servers_helpers_are_the_engines_and_a_tasks_are_the_users(proc, helper):
    watch = EngineWatch(proc.root)
    proc.start(10, "airflow api_server -- host:127.0.0.1 port:4290")
    proc.start(11, f"airflow worker -- {TASK}")
    proc.start(12, *helper, parent=10)
    proc.start(13, *helper, parent=11)
    proc.start(14, *helper)

    assert sorted(found(watch)) == [(10, "airflow api-server"), (11, "airflow task"), (12, "airflow api-server")]


def test_what_the_users_code_forks_is_no_engine_and_what_an_engine_forks_is(proc):
    watch = EngineWatch(proc.root)
    for pid, command in ((10, (PYTHON, "-m", "prefect.engine")), (20, (PYTHON, "/srv/venv/bin/airflow", "triggerer"))):
        proc.start(pid, *command)
        proc.start(pid + 1, *command, parent=pid)

    assert sorted(found(watch)) == [
        (10, "prefect flow run"),
        (20, "airflow triggerer"),
        (21, "airflow triggerer"),
    ]


def test_a_real_process_is_found_and_an_unreadable_proc_shows_none(tmp_path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "airflow"
    script.write_text("import sys; print(flush=True); sys.stdin.read()")
    command = [sys.executable, str(script), "scheduler"]
    watch = EngineWatch()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert (process.pid, "airflow scheduler") in found(watch)
        process.communicate()

    assert EngineWatch(tmp_path / "missing").new() == ()
