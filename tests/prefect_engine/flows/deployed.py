"""Flows that a work pool's worker runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect.flow_runs import suspend_flow_run

from tao_flows import tao_flow, tao_task


@tao_task
def work(cpu_s: float) -> float:
    started_s = time.thread_time()
    while time.thread_time() - started_s < cpu_s:
        pass
    return cpu_s


@tao_task
def endless(said_at: str) -> None:
    """Writes its process's id into a file, and stays for as long as what started it."""
    written, parent = Path(f"{said_at}.part"), os.getppid()
    written.write_text(str(os.getpid()))
    written.rename(said_at)
    for _ in range(3_000):
        if os.getppid() != parent:
            break
        time.sleep(0.1)


@tao_flow(name="deployed", team="workers")
def deployed(said_at: str = "") -> None:
    work(0.1)
    if said_at:
        endless(said_at)


@tao_flow(name="suspended", persist_result=True)
def suspended() -> None:
    work(0.1)
    suspend_flow_run(key="approval")
    work.with_options(name="after")(0.2)
