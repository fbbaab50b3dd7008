"""Processes of workflow engines, told by how they were started and by the titles that they give themselves.

Command lines are those of Prefect 3.7 and 3.8 and of Airflow 3, of its Celery provider, and of the uvicorn and gunicorn
that serve them. A name is the program and its part, such as ``airflow scheduler``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tao_flows.telemetry import procfs
from tao_flows.telemetry.procfs import PROC_ROOT, TICKS_PER_S, ProcessStat

USERS_CODE: Final = frozenset({"airflow task", "prefect flow run", "prefect task worker"})
"""Engines' processes that run the user's code too: only what is not a task or a flow's body is the engine's."""
_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*t?")
_TAKES_VALUE: Final = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_SETTLED_S: Final = 2.0
"""A process of this age has its title: engines set theirs when their imports are done, and a fork at once."""

# Subcommands of the console scripts. Longer ones stand before those that they begin with.
_COMMANDS: Final[dict[str, tuple[tuple[tuple[str, ...], str], ...]]] = {
    "prefect": (
        (("server", "start"), "prefect server"),
        (("server", "services"), "prefect server"),
        (("worker", "start"), "prefect worker"),
        (("agent", "start"), "prefect worker"),
        (("flow", "serve"), "prefect runner"),
        (("flow-run", "execute"), "prefect flow run"),
        (("task", "serve"), "prefect task worker"),
    ),
    "airflow": (
        (("scheduler",), "airflow scheduler"),
        (("api-server",), "airflow api-server"),
        (("triggerer",), "airflow triggerer"),
        (("dag-processor",), "airflow dag-processor"),
        (("standalone",), "airflow standalone"),
        (("celery", "worker"), "airflow worker"),
        (("edge", "worker"), "airflow worker"),
    ),
}
_COMMANDS_OF: Final = {**_COMMANDS, "apache-airflow": _COMMANDS["airflow"]}
# `python -m`, by the module's name or what it begins with.
_MODULES: Final = (
    (re.compile(r"prefect\.(flow_)?engine|prefect\.bundles\.execute"), "prefect flow run"),
    (re.compile(r"prefect\._experimental\.bundles\.execute"), "prefect flow run"),
    (re.compile(r"prefect\.runner(\..+)?"), "prefect runner"),
    (re.compile(r"prefect\.server(\..+)?"), "prefect server"),
    (re.compile(r"airflow\.sdk\.execution_time\.(execute_workload|supervisor)"), "airflow supervisor"),
)
# Modules and scripts that serve an application named among their arguments.
_SERVERS: Final = frozenset({"uvicorn", "gunicorn"})
_APPLICATIONS: Final = (
    (re.compile(r"prefect\.server\.[\w.]+:\w+"), "prefect server"),
    (re.compile(r"airflow\.api_fastapi\.[\w.]+:\w+"), "airflow api-server"),
)
# Titles, set with setproctitle: one argument, whatever it holds.
_TITLES: Final = (
    (re.compile(r"airflow api_server -- "), "airflow api-server"),
    (re.compile(r"(\[ready\] )?airflow api-server worker$"), "airflow api-server"),
    (re.compile(r"airflow worker -- LocalExecutor\b"), "airflow worker"),
    (re.compile(r"airflow worker -- [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"), "airflow task"),
    (re.compile(r"airflow (task )?supervisor: "), "airflow supervisor"),
    (re.compile(r"airflow serve-logs$"), "airflow serve-logs"),
    # What Celery shows in parentheses is its program's arguments: `airflow celery worker` here, no `celery` elsewhere.
    (re.compile(r"\[celeryd: [^]]*:MainProcess\] -active- \(celery worker\b"), "airflow worker"),
)
# Processes that a server or a worker starts to share its work, and that do not say whose they are.
_HELPER: Final = re.compile(r"gunicorn: worker \[|\[celeryd: |.* from multiprocessing\.(spawn|forkserver) import ")


class EngineProcess(NamedTuple):
    """A process of an engine."""

    pid: int
    start_ticks: int
    """When it started, in ticks since boot; with the pid it names the process for good."""
    engine: str
    """As ``engine_of`` says."""


@dataclass(slots=True)
class _Seen:
    command: tuple[str, ...]
    stack_start: int
    found: EngineProcess | None
    settled: bool
    """Whether it need not be looked at again."""


def engine_of(command: Sequence[str]) -> str | None:
    """The engine that a command line or a process title is of, such as ``prefect worker``; None for none.

    Only how a process was started counts: a file, a folder or an argument that has an engine's name is nobody's engine.

    Args:
        command: the arguments, the program's own name first.
    """
    words = [*command]
    while words and not words[-1]:
        words.pop()  # a title is shorter than what it is written over
    if not words:
        return None
    if len(words) == 1:
        title = next((engine for pattern, engine in _TITLES if pattern.match(words[0])), None)
        # gunicorn and others write the arguments into one string before they choose a title.
        return title or _started(words[0].split(" "))
    return _started(words)


class EngineWatch:
    """Finds engines' processes, asked about once a second.

    The command line of a process is read while the process is young, and as long as it is an engine's. A process that
    was forked has its parent's title at first; one that shares its parent's work, such as a server's, keeps it.

    Args:
        proc_root: where processes are looked for.
    """

    def __init__(self, proc_root: Path = PROC_ROOT) -> None:
        self._proc_root = proc_root
        self._seen: dict[int, _Seen] = {}

    def new(self) -> tuple[EngineProcess, ...]:
        """Processes that have appeared since the last call, and those that became another part of an engine.

        A number that was given to another process between two calls is noticed only where it was an engine's.
        """
        there = procfs.processes(self._proc_root)
        for gone in self._seen.keys() - set(there):
            del self._seen[gone]
        young = (pid for pid in there if pid not in self._seen or not self._seen[pid].settled)
        stats = [stat for stat in (procfs.process_stat(pid, self._proc_root) for pid in young) if stat is not None]
        # Parents first: what a process is may follow from what its parent is.
        stats.sort(key=lambda stat: (stat.start_ticks, stat.pid))
        return tuple(process for process in map(self._look, stats) if process is not None)

    def _look(self, stat: ProcessStat) -> EngineProcess | None:
        pid = stat.pid
        command = procfs.command_line(pid, self._proc_root)
        if command is None:
            return None
        known = self._seen.get(pid)
        before = known.found if known is not None and known.stack_start == stat.stack_start else None
        engine = self._engine(command, self._seen.get(stat.parent))
        if engine is None and before is not None:
            engine = before.engine  # gunicorn and Celery give themselves titles that are anyone's
        found = None if engine is None else EngineProcess(pid, stat.start_ticks, engine)
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start_ticks / TICKS_PER_S
        self._seen[pid] = _Seen(command, stat.stack_start, found, settled=found is None and age_s > _SETTLED_S)
        return found if known is None or found != known.found else None

    def _engine(self, command: tuple[str, ...], parent: _Seen | None) -> str | None:
        engine = engine_of(command)
        above = None if parent is None or parent.found is None else parent.found.engine
        if parent is None or above is None:
            return engine
        if engine is None:
            return above if above not in USERS_CODE and _HELPER.match(" ".join(command)) else None
        # What the user's code forks goes by the title of the process that runs it.
        return None if above == engine in USERS_CODE and parent.command == command else engine


def _started(words: Sequence[str]) -> str | None:
    if not _PYTHON.fullmatch(os.path.basename(words[0])):
        return None
    position = 1
    while position < len(words) and words[position].startswith("-"):
        if words[position] == "-m":
            return _module(words[position + 1 :])
        if words[position] == "-c":
            return None
        position += 2 if words[position] in _TAKES_VALUE else 1
    if position >= len(words):
        return None
    folder, script = os.path.split(words[position])
    # A console script: a user's file or folder of that name lies elsewhere.
    return _program(script, words[position + 1 :]) if os.path.basename(folder) == "bin" else None


def _module(words: Sequence[str]) -> str | None:
    if not words:
        return None
    named = next((engine for pattern, engine in _MODULES if pattern.fullmatch(words[0])), None)
    return named or _program(words[0], words[1:])


def _program(name: str, arguments: Sequence[str]) -> str | None:
    if name in _SERVERS:
        served = (engine for word in arguments for pattern, engine in _APPLICATIONS if pattern.fullmatch(word))
        return next(served, None)
    words = [*arguments]
    while words and words[0].startswith("-"):  # options of the program as a whole; of them these take a value
        del words[: 2 if words[0] in {"-p", "--profile"} else 1]
    commands = _COMMANDS_OF.get(name, ())
    return next((engine for start, engine in commands if tuple(words[: len(start)]) == start), None)
