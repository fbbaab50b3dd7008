"""What the agent takes in the background: with many registered tasks, all of which work a little in every slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from peers.charges import agent
from peers.worker import process_clock_s

from tao_flows.agent.client import AgentClient
from tao_flows.telemetry.procfs import resident_bytes

TASKS: Final = 200
NAP_S: Final = 0.1
"""As long as the agent's slots: every task has worked in each."""
AGENTS: Final = {"ebpf": ("eBPF", ()), "perf": ("--no-bpf", ("--no-bpf",))}


def measure_agents(tree: Path, scratch: Path, seconds: float, tasks: int = TASKS) -> dict[str, dict[str, Any]]:
    """CPU share and memory of agents with no task and with many."""
    results: dict[str, dict[str, Any]] = {}
    for name, (title, options) in AGENTS.items():
        for count in (0, tasks) if name == "ebpf" else (tasks,):
            result: dict[str, Any] = {"title": f"tao-flows agent ({title}), 10 Hz, {count} tasks", "tasks": count}
            results[f"{name}-{count}"] = result
            try:
                with agent(tree, scratch, options) as running, _registered(running.socket, count) as source:
                    result["cpu_source"] = source
                    time.sleep(1)  # what comes with registering is over
                    before_s, began_s = process_clock_s(running.pid), time.monotonic()
                    time.sleep(seconds)
                    used_s = process_clock_s(running.pid) - before_s
                    result["cpu_share"] = used_s / (time.monotonic() - began_s)
                    result["resident_bytes"] = resident_bytes((running.pid,))
            except RuntimeError as error:
                result["failed"] = str(error)
    return results


@contextmanager
def _registered(socket: Path, tasks: int) -> Iterator[str]:
    """Thread tasks of this process, and the agent's source of CPU time."""
    client, stop = AgentClient(socket, "none"), threading.Event()
    threads = [threading.Thread(target=_work, args=(stop,), daemon=True) for _ in range(tasks)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            client.begin("thread", "task", tid=thread.native_id)
        yield client.about.cpu_source
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        client.close()


def _work(stop: threading.Event) -> None:
    while not stop.wait(NAP_S):
        sum(range(100))
