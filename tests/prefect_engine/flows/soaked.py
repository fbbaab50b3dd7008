"""A flow of a few tasks, one of which fails at first, that notes each of them as it runs."""

from __future__ import annotations

import time
from pathlib import Path

from prefect.runtime import flow_run, task_run

from tao_flows import tao_flow, tao_task


def note(folder: str, what: str) -> None:
    with Path(folder, f"{flow_run.id or task_run.flow_run_id}").open("a") as out:
        out.write(f"{what}\n")


def burn(cpu_s: float) -> None:
    begun_s = time.thread_time()
    while time.thread_time() - begun_s < cpu_s:
        pass


@tao_task(budget="soak")
def step(folder: str, number: int) -> int:
    note(folder, f"step {number}")
    burn(0.02)
    return number * number


@tao_task(budget="soak", retries=1)
def flaky(folder: str) -> str:
    note(folder, f"flaky {task_run.run_count}")
    if task_run.run_count == 1:
        raise RuntimeError("at first it fails, as it is to")
    return "at last"


@tao_flow(name="noted")
def noted(folder: str) -> int:
    time.sleep(2)
    squares = [future.result() for future in step.map([folder] * 4, range(4))]
    flaky(folder)
    return sum(squares)
