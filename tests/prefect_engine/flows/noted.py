"""A plain flow that notes when and by which process it ran: what it wants of a scheduler is said by tags alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run


@flow(name="noted")
def noted(folder: str) -> int:
    with Path(folder, f"{flow_run.id}").open("a") as out:
        out.write(f"{os.getpid()} {time.time()}\n")
    return os.getpid()
