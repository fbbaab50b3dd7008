"""One engine as one side has it, brought up in its own environment: what is watched, warmed, and given items."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.headline.work import SPEC

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ENGINES: Final = ("prefect", "airflow-local", "airflow-celery")
SIDES: Final = ("plain", "observe", "advise", "enforce")
WARM_ITEMS: Final = 30
"""The most in a flow run before the window. Below 20 items Prefect's adapter forms no batches unasked."""
WARM_RUNS: Final = 6
"""Flow runs before the window: one more than the controller needs to see Inversion."""
_START_S: Final = 180.0

Arrivals = Sequence[tuple[int, float]]
"""Number of the group, and when it comes, in seconds since 1970."""


class Site(Protocol):
    """An engine that is up."""

    components: Mapping[str, Sequence[int]]
    """By name, processes that belong to it, with all that they start."""

    def run(self, arrivals: Arrivals, items: int) -> None:
        """Has a group of items come at each of the times; comes back at once."""

    def over(self) -> dict[str, Any] | None:
        """What the engine says of the groups once it has ended them; None until then. Costs the engine nothing."""

    def close(self) -> None:
        """Ends everything that was started."""


class Told:
    """A program that answers each line with a line."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=dict(env),
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._begun = b""

    def tell(self, what: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """The next answer, where it has come; what is no JSON object is passed over."""
        assert self.process.stdout is not None
        self._begun += self.process.stdout.read() or b""
        while b"\n" in self._begun:
            line, _, self._begun = self._begun.partition(b"\n")
            if line.startswith(b"{"):
                return dict(json.loads(line))
        if self.process.poll() is not None:
            said = self._log.read_text(errors="replace")[-3_000:]
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.returncode}\n{said}")
        return None

    def wait(self, timeout_s: float = _START_S) -> dict[str, Any]:
        """The next answer."""
        return dict(until(self.answer, timeout_s, f"an answer; {self._log}"))

    def close(self) -> None:
        """Ends it by the end of its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def until(there: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """What ``there`` gives once it gives something.

    Raises:
        TimeoutError: it never did.
    """
    give_up_s = time.monotonic() + timeout_s
    while not (found := there()):
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.2)
    return found


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class PrefectSite:
    """A server on SQLite, and a process in which the flow runs, by the default thread runner."""

    def __init__(self, python: Path, side: str, home: Path, spec: Path) -> None:
        home.mkdir(parents=True)
        self._python, self._side, self._home = python, side, home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "TAO_FLOWS_"))}
        self._env = {
            **kept,
            SPEC: str(spec),
            "HOME": str(home),
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_CLI_PROMPT": "false",
            "TAO_FLOWS_LEDGER": f"sqlite:///{home}/ledger.db",
            "TAO_FLOWS_AGENT": "off",
            "TAO_FLOWS_MODE": "off" if side == "plain" else side,
        }
        command = [str(python), "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with (home / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                command,
                env=self._env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        self._flow: Told | None = None
        try:
            until(lambda: self._answers(port), _START_S, "the Prefect server")
        except BaseException:
            self.close()
            raise

    @property
    def components(self) -> dict[str, list[int]]:
        return {"server": [self._server.pid], "flow": [self._begun().process.pid]}

    def warm(self, items: int) -> None:
        """Runs the flow as often as the controller needs to judge it, in a process of its own, which then ends.

        The process that is measured runs it once: what it loads at its first flow run is no part of the figures.
        """
        self._has_run(WARM_RUNS, min(items, WARM_ITEMS))
        self._end_flow()
        self._has_run(1, min(items, WARM_ITEMS))

    def run(self, arrivals: Arrivals, items: int) -> None:
        self._begun().tell({"items": items, "arrivals": list(arrivals)})

    def over(self) -> dict[str, Any] | None:
        return self._begun().answer()

    def close(self) -> None:
        self._end_flow()
        self._server.terminate()
        try:
            self._server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()

    def _has_run(self, groups: int, items: int) -> None:
        self._begun().tell({"items": items, "arrivals": [(-number, 0.0) for number in range(1, groups + 1)]})
        self._begun().wait(3_600.0)

    def _begun(self) -> Told:
        if self._flow is None:
            command = (self._python, "-m", "benchmarks.headline.prefect_flow", self._side)
            self._flow = Told(command, self._env, self._home / "flow.log")
            self._flow.wait()
        return self._flow

    def _end_flow(self) -> None:
        if self._flow is not None:
            self._flow.close()
            self._flow = None

    def _answers(self, port: int) -> bool:
        if self._server.poll() is not None:
            raise RuntimeError((self._home / "server.log").read_text()[-3_000:])
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2):
                return True
        except OSError:
            return False


class AirflowSite:
    """Scheduler, API server, DAG processor, triggerer and PostgreSQL; with Celery a worker and Redis as well."""

    def __init__(self, python: Path, side: str, home: Path, spec: Path, executor: str, counts: Sequence[int]) -> None:
        home.mkdir(parents=True)
        named = ",".join(str(count) for count in sorted({2, *counts}))
        command = (python, "-m", "benchmarks.headline.airflow_site", side, executor, named)
        self._told = Told(command, {**os.environ, SPEC: str(spec)}, home / "site.log")
        try:
            self.components = dict(self._told.wait(300.0)["components"])
        except BaseException:
            self.close()
            raise
        self._run_ids: list[str] | None = None

    def warm(self, _items: int) -> None:
        """One small run."""
        self.run([(-1, 0.0)], 2)
        until(self.over, 600.0, "the first run")

    def run(self, arrivals: Arrivals, items: int) -> None:
        self._run_ids = None
        self._told.tell({"items": items, "arrivals": list(arrivals)})

    def over(self) -> dict[str, Any] | None:
        answer = self._told.answer()
        if answer is not None and "run_ids" in answer:
            self._told.tell({"ended": answer["run_ids"]})
            return None
        return answer

    def close(self) -> None:
        self._told.close()


def open_site(engine: str, python: Path, side: str, home: Path, spec: Path, counts: Sequence[int]) -> Any:
    """The engine as the side has it, up and not yet warmed."""
    if engine == "prefect":
        return PrefectSite(python, side, home, spec)
    return AirflowSite(python, side, home, spec, engine.removeprefix("airflow-"), counts)
