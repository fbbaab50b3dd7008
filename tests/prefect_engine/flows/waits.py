"""A flow that a worker runs, whose last tasks may wait for cleaner power, and which may be suspended meanwhile."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from prefect import task
from prefect.concurrency.sync import concurrency

import tao_flows.gather
from tao_flows import tao_flow, tao_task

# Starts are planned minutes apart; a test has no minutes.
tao_flows.gather.SLOT_S = 5.0


def note(folder: str, what: str) -> None:
    """Every run of a task leaves a line, with the process that it was in."""
    with Path(folder, "ran").open("a") as ran:
        ran.write(f"{what} {os.getpid()}\n")


@tao_task(persist_result=True)
def before(folder: str) -> str:
    note(folder, "before")
    return "before"


@task(persist_result=True)
def plain(folder: str) -> str:
    note(folder, "plain")
    return "plain"


@task(persist_result=False)
def forgetful(folder: str) -> str:
    note(folder, "forgetful")
    return "forgetful"


@tao_task(deferrable=True, max_defer="2h", persist_result=True)
def waits(folder: str, number: int) -> int:
    note(folder, f"waits-{number}")
    return number


def clean_soon(folder: str) -> None:
    """Power is clean in half a minute, counted from when the run first begins."""
    if not Path(folder, "ran").exists():
        now = datetime.now(timezone.utc)
        rows = [(now - timedelta(hours=1), 500), (now + timedelta(seconds=30), 20), (now + timedelta(hours=5), 500)]
        carbon = "\n".join(f"{at.isoformat()},DE,{value}" for at, value in rows)
        Path(folder, "carbon.csv").write_text(f"time,zone,value\n{carbon}\n")


@tao_flow(name="waits", suspend_after="20s", persist_result=True)
def flow(folder: str, how: str = "called") -> list[int]:
    if how == "planned":
        clean_soon(folder)
    before(folder)
    plain(folder)
    if how == "forgetful":
        forgetful(folder)
    if how == "submitted":
        futures = waits.map([folder] * 3, [0, 1, 2])
        return [future.result() for future in futures]
    if how == "gated":
        with concurrency("tao-flows-gate", occupy=1):
            return [waits(folder, 0)]
    return [waits(folder, 0)]
