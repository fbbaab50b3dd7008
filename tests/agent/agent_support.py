"""What the agent's tests share: a host with counters that move, the agent as a process of its own, and clients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tao_flows.testing import PowercapTree

HERE = Path(__file__).parent
REFUSE_PERF = HERE.parent / "unit" / "_refuse_perf.py"
NOBODY = 65_534
TAO_FLOWS = "import sys; from tao_flows.cli import main; main()"
PACKAGE, DRAM = "intel-rapl:0", "intel-rapl:0:0"
LINES = ("task_uj", "overhead_uj", "unattributed_uj", "idle_uj", "allocated_idle_uj")


class Host:
    """A powercap tree whose counters a thread moves, each at a known power."""

    def __init__(self, root: Path, watts: Mapping[str, float] | None = None) -> None:
        self.tree = PowercapTree(root)
        self.tree.add_zone(PACKAGE, "package-0")
        self.tree.add_zone(DRAM, "dram")
        self.watts = dict(watts or {PACKAGE: 50.0, DRAM: 5.0})
        self.moved_uj = dict.fromkeys(self.watts, 0)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._move, daemon=True)
        self._thread.start()

    def _move(self) -> None:
        last_s = time.monotonic()
        while not self._stop.wait(0.005):
            with self._lock:
                now_s = time.monotonic()
                for zone, power_w in self.watts.items():
                    by_uj = round(power_w * 1e6 * (now_s - last_s))
                    self.moved_uj[zone] = self.moved_uj.get(zone, 0) + by_uj
                    self.tree.move(zone, by_uj)
                last_s = now_s

    def paused(self) -> threading.Lock:
        """While it is held, no counter moves."""
        return self._lock

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class Agent:
    """The real agent, started as people start it."""

    def __init__(
        self,
        directory: Path,
        host: Host | None,
        *options: str,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.socket = directory / "run" / "agent.sock"
        self.state = directory / "run" / "agent.json"
        self._command = [*wrapper, sys.executable, "-c", TAO_FLOWS, "agent", "--socket", str(self.socket), *options]
        root = directory / "no-powercap" if host is None else host.tree.root
        self._env = {**os.environ, "TAO_FLOWS_POWERCAP_ROOT": str(root), **(env or {})}
        self.said: list[str] = []
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, env=self._env, stderr=subprocess.PIPE, text=True)
        self.said.clear()
        for line in self.process.stderr:
            self.said.append(line)
            if "ready at" in line:
                break
        else:
            self.process.wait()
            self.process.stderr.close()
            raise AssertionError("the agent did not start:\n" + "".join(self.said))
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self._ended()

    def stop(self) -> int:
        """Ends it as a service manager does, and gives its exit status."""
        self.process.terminate()
        return self._ended()

    def _ended(self) -> int:
        status = self.process.wait(timeout=20)
        self._reader.join()
        self.process.stderr.close()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def assert_well(self) -> None:
        """It runs, and nothing has gone wrong in it."""
        assert self.process.poll() is None, "".join(self.said)
        with Client(self.socket) as client:
            status = client.status()
        wrong = {code for code in status["incidents"] if code.startswith("INTERNAL")}
        assert not wrong
        assert status["counts"]["failed"] == 0


class Client:
    """A connection of this process to an agent."""

    def __init__(self, path: Path, role: str | None = "tool") -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self._seq = 0
        self.about = {} if role is None else self.ask("hello", v=1, role=role)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()

    def send(self, op: str, **fields: Any) -> int:
        self._seq += 1
        self.socket.send(json.dumps({"op": op, "seq": self._seq, **fields}).encode())
        return self._seq

    def receive(self) -> dict[str, Any]:
        raw = self.socket.recv(1 << 17)
        assert raw, "the agent hung up"
        return json.loads(raw)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        seq = self.send(op, **fields)
        answer = self.receive()
        assert answer["seq"] == seq
        return answer

    def begin(self, kind: str, **fields: Any) -> dict[str, str]:
        answer = self.ask("begin", kind=kind, label="x", **fields)
        assert answer["ok"], answer
        return {"window": answer["window"], "token": answer["token"]}

    def end(self, window: Mapping[str, str], **fields: Any) -> dict[str, Any]:
        answer = self.ask("end", **window, **fields)
        assert answer["ok"], answer
        return answer["figure"]

    def status(self) -> dict[str, Any]:
        return self.ask("status")["status"]


class Driver:
    """A client in a process of its own, of any user: driver.py, which does what it is told line by line."""

    def __init__(
        self,
        path: Path,
        *,
        uid: int = 0,
        group: Path | None = None,
        groups: Sequence[int] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        command = [*wrapper, sys.executable, "-S", "-u", "-c", (HERE / "driver.py").read_text(), str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        try:
            self.pid = self.do("be", uid=uid, groups=list(groups), group=None if group is None else str(group))
        except AssertionError:
            self.kill()
            raise

    def do(self, what: str, **fields: Any) -> Any:
        self.tell(what, **fields)
        return self.told()

    def tell(self, what: str, **fields: Any) -> None:
        print(json.dumps({"do": what, **fields}), file=self.process.stdin, flush=True)

    def told(self) -> Any:
        line = self.process.stdout.readline()
        assert line, "the client's process has ended"
        return json.loads(line)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.do("ask", message={"op": op, "seq": 7, **fields})

    def hello(self, role: str = "tool") -> dict[str, Any]:
        return self.ask("hello", v=1, role=role)

    def begin(self, kind: str, **fields: Any) -> dict[str, str]:
        answer = self.ask("begin", kind=kind, label="x", **fields)
        assert answer["ok"], answer
        return {"window": answer["window"], "token": answer["token"]}

    def end(self, window: Mapping[str, str], **fields: Any) -> dict[str, Any]:
        answer = self.ask("end", **window, **fields)
        assert answer["ok"], answer
        return answer["figure"]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()


def domain(figure: Mapping[str, Any], name: str = "package-0") -> dict[str, Any]:
    """One domain of a figure."""
    (found,) = (each for each in figure["domains"] if each["id"] == name)
    return found


def assert_sums(figure: Mapping[str, Any]) -> None:
    """In every counted domain the lines are the counter, to the microjoule, and none is negative."""
    counted = [each for each in figure["domains"] if "task_uj" in each]
    assert counted
    for each in counted:
        lines = [each.get(line, 0) for line in LINES]
        assert min(lines) >= 0, each
        assert sum(lines) == each["counter_uj"], each
        assert each["low_uj"] <= each["task_uj"] <= each["high_uj"]


def eventually(is_so: Callable[[], object], within_s: float = 15.0) -> None:
    """Waits until something is so."""
    until_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until_s, "it never became so"
        time.sleep(0.02)


def burn(cpu_s: float) -> float:
    """Uses CPU on this thread and says how much it was."""
    started_s = time.thread_time()
    while (spent_s := time.thread_time() - started_s) < cpu_s:
        pass
    return spent_s
