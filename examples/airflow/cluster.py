"""A whole Airflow on this machine without containers: Postgres, Redis, Celery workers on queues, and a LocalExecutor.

``python examples/airflow/cluster.py`` brings it up with the DAGs beside this file and prints where its pages are; Ctrl-C
ends it. With ``--demo`` it runs the DAGs, shows what each cost, and ends. It needs Debian's packages ``postgresql`` and
``redis-server``, but none of their services, and no rights. The tests run on the same.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/fakes"))
from postgres_server import PostgresServer, find_binaries

from tao_flows.errors import MissingExtraError
from tao_flows.ledger import open_ledger

HERE = Path(__file__).resolve().parent
CELERY = "airflow_plugin.executor.TaoCeleryExecutor"
LOCAL = "airflow_plugin.executor.TaoLocalExecutor"
QUEUES = ("normal", "green")
PROGRAMS = ("api-server", "dag-processor", "scheduler", "triggerer")
PASSWORD = "password"  # noqa: S105 - of an Airflow that only this machine reaches
USERS = {"admin": "admin", "op": "op", "user": "user", "viewer": "viewer"}
"""Names and roles of Airflow's simple auth manager; the password of each is ``PASSWORD``."""
EXAMPLES = ("train_model", "mapped_etl", "workflow")
_START_S = 120.0
_END_S = 15.0


class Cluster:
    """Airflow's processes, each a child of this one. ``with Cluster(home) as cluster`` starts and ends it.

    Args:
        home: where everything is kept; it is made.
        dags: the folder of DAGs.
        executors: Airflow's ``[core] executor``.
        queues: a Celery worker is started for each; none where no executor is Celery's.
        env: more of the environment, for every process.
        parallelism: tasks at once, of each executor.
        ledger_server: where the ledger is kept, if not on the server of Airflow's own database.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path = HERE / "dags",
        executors: str = f"{CELERY},{LOCAL}",
        queues: Iterable[str] = QUEUES,
        env: Mapping[str, str] | None = None,
        parallelism: int = 8,
        ledger_server: PostgresServer | None = None,
    ) -> None:
        self.home, self.dags = home, dags
        self.queues = tuple(queues) if "elery" in executors else ()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._logs: dict[str, IO[bytes]] = {}
        self._tokens: dict[str, str] = {}
        binaries = find_binaries()
        if binaries is None or (self.queues and shutil.which("redis-server") is None):
            raise FileNotFoundError("needs the programs of PostgreSQL and Redis: apt install postgresql redis-server")
        home.mkdir(parents=True, exist_ok=True)
        self.postgres = PostgresServer(binaries)
        self.database_url = self.postgres.fresh_url()
        self.ledger_url = self._a_ledger(ledger_server or self.postgres)
        self.port, self.redis_port = _free_port(), _free_port()
        database = self.database_url.replace("postgresql://", "postgresql+psycopg2://")
        (home / "passwords.json").write_text(json.dumps(dict.fromkeys(USERS, PASSWORD)))
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "TAO_FLOWS_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__EXECUTOR": executors,
            "AIRFLOW__CORE__PARALLELISM": str(parallelism),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.port}/execution/",
            "AIRFLOW__CORE__FERNET_KEY": "Y2xvc2UgdG8gdGhlIGVkZ2Ugb2YgdGhlIHdvcmxkISE=",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{self.port}",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": "of this machine alone",
            # Airflow 3.0 leaves it open, which today's library for tokens refuses.
            "AIRFLOW__API_AUTH__JWT_ISSUER": "here",
            "AIRFLOW__API_AUTH__JWT_SECRET": "known to nobody else, and long enough for its algorithm: 512 bits" * 2,
            "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(max(2, parallelism // 2)),
            "AIRFLOW__OPERATORS__DEFAULT_QUEUE": self.queues[0] if self.queues else "default",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_HOST": "127.0.0.1",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "TAO_FLOWS_AGENT": "off",
            "AIRFLOW__TAO_FLOWS__LEDGER": self.ledger_url,
            **(env or {}),
        }

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything, and waits until it answers."""
        self._guard = subprocess.Popen(
            [sys.executable, str(HERE / "guard.py"), str(self.home)], stdin=subprocess.PIPE, start_new_session=True
        )
        if self.queues:
            self._run("redis", "redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "")
        self.command("db", "migrate")
        self.command("dags", "reserialize", must=False)
        self.begin("api-server")
        self._until_healthy()
        for name in ("scheduler", "dag-processor", "triggerer", *self.queues):
            self.begin(name)
        self._until("every part runs", self._all_beat)

    def begin(self, name: str) -> None:
        """Starts one process: ``scheduler``, ``triggerer``, ``dag-processor``, ``api-server`` or a queue's worker.

        One more of the same has a name of its own after a dash: ``scheduler-second``.
        """
        if name in self.queues:
            more = {"AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port())}
            arguments = ("celery", "worker", "--queues", name, "--celery-hostname", f"{name}@%h", "--skip-serve-logs")
            self._run(name, sys.executable, "-m", "airflow", *arguments, env=more)
        else:
            more = {"AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(_free_port())}
            program = next(each for each in PROGRAMS if name.startswith(each))
            arguments = ("--skip-serve-logs",) if program in {"scheduler", "triggerer"} else ()
            self._run(name, sys.executable, "-m", "airflow", program, *arguments, env=more)

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends one process; those that it has started are left to themselves, as by a crash."""
        process = self.processes.pop(name)
        process.send_signal(how)
        process.wait(60)

    def stop(self) -> None:
        """Ends everything that was started here."""
        last = ("redis", "api-server")
        for are_last in (False, True):
            _end([process for name, process in self.processes.items() if (name in last) is are_last])
        self.processes.clear()
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None
        for log in self._logs.values():
            log.close()
        self.postgres.stop()

    def command(self, *arguments: str, must: bool = True) -> str:
        """What a command of Airflow's prints."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            check=False,
            env=self.env,
            capture_output=True,
            text=True,
            cwd=self.home,
        )
        if must and done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.home / f"{name}.log").read_text(errors="replace")

    def request(
        self, method: str, path: str, body: object = None, user: str | None = "admin", timeout_s: float = 60.0
    ) -> tuple[int, bytes]:
        """Asks Airflow's server as one of ``USERS``, or as nobody; the status and what it answers."""
        headers = {"Content-Type": "application/json"}
        if user is not None:
            headers["Authorization"] = f"Bearer {self._token(user)}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def api(self, method: str, path: str, body: object = None) -> Any:
        """What Airflow's API answers.

        Raises:
            RuntimeError: it refuses.
        """
        status, answer = self.request(method, f"/api/v2{path}", body)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer.decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def wait_for_dags(self, *dag_ids: str, timeout_s: float = 60.0) -> None:
        """Waits until the DAG processor has read them."""

        def there() -> bool:
            known = {dag["dag_id"] for dag in self.api("GET", "/dags?limit=500")["dags"]}
            return set(dag_ids) <= known

        self._until(f"DAGs {dag_ids} are there", there, timeout_s)

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        """Starts a run; its id."""
        run = self.api("POST", f"/dags/{quote(dag_id, safe='')}/dagRuns", {"logical_date": None, "conf": conf or {}})
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """How a run stands."""
        path = f"/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"
        return str(self.api("GET", path)["state"])

    def wait(self, dag_id: str, run_id: str, timeout_s: float = 180.0) -> str:
        """Waits for a run's end; its state."""
        self._until(
            f"{dag_id} {run_id} has ended",
            lambda: self.run_state(dag_id, run_id) in {"success", "failed"},
            timeout_s,
        )
        return self.run_state(dag_id, run_id)

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run."""
        path = f"/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}/taskInstances?limit=1000"
        return list(self.api("GET", path)["task_instances"])

    def sql(self, statement: str, *, database: str = "") -> list[tuple[Any, ...]]:
        """Rows of Airflow's own database, or of another by its URL."""
        import psycopg2

        parts = urlsplit(database or self.database_url)
        with (
            psycopg2.connect(
                host=parts.hostname,
                port=parts.port,
                user=parts.username,
                password=unquote(parts.password or ""),
                dbname=parts.path[1:],
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    def _token(self, user: str) -> str:
        if user not in self._tokens:
            status, answer = self.request("POST", "/auth/token", {"username": user, "password": PASSWORD}, user=None)
            if status >= 400:
                raise RuntimeError(f"no token for {user}: {status} {answer!r}")
            self._tokens[user] = json.loads(answer)["access_token"]
        return self._tokens[user]

    def _run(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> None:
        log = self._logs.setdefault(name, (self.home / f"{name}.log").open("ab"))
        self.processes[name] = subprocess.Popen(
            command,
            env={**self.env, **(env or {})},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.write(f"{self.processes[name].pid}\n".encode())
            self._guard.stdin.flush()

    def _a_ledger(self, server: PostgresServer) -> str:
        url = server.fresh_url()
        try:
            open_ledger(url)
        except MissingExtraError:  # the SQLAlchemy of Airflow 3.0 is too old for it
            return str(self.home / "ledger.db")
        return url

    def _until_healthy(self) -> None:
        def healthy() -> bool:
            try:
                return self.request("GET", "/api/v2/monitor/health", user=None)[0] == 200
            except OSError:
                return False

        self._until("the API server answers", healthy)

    def _all_beat(self) -> bool:
        health = json.loads(self.request("GET", "/api/v2/monitor/health", user=None)[1])
        parts = ("scheduler", "triggerer", "dag_processor")
        ready = all(health[part] and health[part]["status"] == "healthy" for part in parts)
        return ready and all(f"{queue}@" in self.log(queue) and "ready" in self.log(queue) for queue in self.queues)

    def _until(self, what: str, is_so: Any, timeout_s: float = _START_S) -> None:
        give_up_s = time.monotonic() + timeout_s
        while not is_so():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{self.log(name)[-4000:]}")
            if time.monotonic() > give_up_s:
                said = "\n".join(f"== {name}\n{self.log(name)[-1500:]}" for name in self.processes)
                raise TimeoutError(f"waited {timeout_s:g} s until {what}\n{said}")
            time.sleep(0.3)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def demo(cluster: Cluster) -> bool:
    """Runs the example DAGs and prints what each cost; whether all succeeded."""
    cluster.wait_for_dags(*EXAMPLES)
    runs = {dag_id: cluster.trigger(dag_id) for dag_id in EXAMPLES}
    states = {dag_id: cluster.wait(dag_id, run_id, timeout_s=900) for dag_id, run_id in runs.items()}
    program = str(Path(sys.executable).with_name("tao-flows"))
    for dag_id, run_id in runs.items():
        print(f"\n== {dag_id}: {states[dag_id]}", flush=True)
        env = {**cluster.env, "TAO_FLOWS_LEDGER": cluster.ledger_url}
        subprocess.run([program, "report", f"{dag_id}/{run_id}"], env=env, check=True)
    return set(states.values()) == {"success"}


def main() -> int:
    """Runs until it is told to end, or until the demo has ended."""
    parser = argparse.ArgumentParser(description="A whole Airflow on this machine, without containers.")
    parser.add_argument("--demo", action="store_true", help="run the example DAGs, show what each cost, and end")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Bringing up Postgres, Redis and Airflow: about a minute.", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="tao-airflow-") as home, Cluster(Path(home)) as cluster:
            print(f"Airflow is at http://127.0.0.1:{cluster.port} (admin / {PASSWORD}); Ctrl-C ends it")
            print(f"The ledger: {cluster.ledger_url}", flush=True)
            if given.demo:
                return 0 if demo(cluster) else 1
            signal.pause()
    except KeyboardInterrupt:
        print("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
