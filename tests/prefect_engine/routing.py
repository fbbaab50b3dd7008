"""Two work pools in zones of their own, one dear and one clean, with what a test needs to run flows in them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled
from processes import end

ENTRYPOINT = f"{Path(__file__).parent / 'flows' / 'routed.py'}:routed"
HASTE = {
    "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
}
SETTINGS = """mode = "enforce"
pools = "pools.toml"
[[rules]]
name = "*"
trigger = ["manual", "scheduled"]
mode = "enforce"
[signals.carbon.A]
csv = "carbon.csv"
[signals.carbon.B]
csv = "carbon.csv"
"""
HEARD_S = 6.0
"""A signal is asked for anew this often at least."""


@dataclass
class Site:
    """Settings and pools. A pool's zone is A if its name ends with ``blue``, else B."""

    folder: Path
    pools: tuple[str, ...]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def set_up(self) -> None:
        """Writes the settings; what is clean is B."""
        costs = "energy_j = { low = 90, mean = 100, high = 110 }\nruntime_s = { p50 = 1, p95 = 2 }\n"
        tables = [
            f'[[pools]]\npool_id = "{pool}"\nzone = "{"A" if pool.endswith("blue") else "B"}"\n{costs}'
            for pool in self.pools
        ]
        (self.folder / "pools.toml").write_text("".join(tables))
        (self.folder / "tao-flows.toml").write_text(SETTINGS)
        self.dear("A")

    def dear(self, zone: str) -> None:
        """Has the power of one zone be dear for the day, and that of the other clean."""
        self.prepared(zone).rename(self.folder / "carbon.csv")

    def prepared(self, zone: str) -> Path:
        """A file that does so in the place of ``carbon.csv`` beside it."""
        now = datetime.now(timezone.utc)
        rows = [
            f"{(now + timedelta(hours=hour)).isoformat()},{each},{900.0 if each == zone else 20.0}"
            for each in ("A", "B")
            for hour in range(-2, 25)
        ]
        new = self.folder / "carbon.new"
        new.write_text("\n".join(["time,zone,value", *rows]))
        return new

    @property
    def settings(self) -> dict[str, str]:
        """What names them in the environment."""
        return {
            "TAO_FLOWS_CONFIG": str(self.folder / "tao-flows.toml"),
            "TAO_FLOWS_LEDGER": f"sqlite:///{self.folder}/ledger.db",
        }

    def start(self, *command: str, **more: str) -> Path:
        """Starts a Python process with the settings; its log."""
        log = self.folder / f"log-{len(self.processes)}"
        with log.open("wb") as out:
            environment = {**os.environ, **HASTE, **self.settings, **more}
            self.processes.append(
                subprocess.Popen([sys.executable, *command], env=environment, stdout=out, stderr=subprocess.STDOUT)
            )
        return log

    def said(self) -> str:
        """The ends of its processes' logs."""
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in sorted(self.folder.glob("log-*")))

    def close(self) -> None:
        """Ends the processes."""
        end(self.processes)


async def make_pools(*names: str) -> None:
    async with get_client() as client:
        for name in names:
            await client.create_work_pool(WorkPoolCreate(name=name, type="process"), overwrite=True)


async def create(client: PrefectClient, deployment_id: UUID, how: str = "", *, in_s: float = 0.0) -> FlowRun:
    """A run of a deployment, scheduled for so many seconds from now."""
    when = datetime.now(timezone.utc) + timedelta(seconds=in_s)
    parameters = {"how": how} if how else {}
    return await client.create_flow_run_from_deployment(
        deployment_id, parameters=parameters, state=Scheduled(scheduled_time=when)
    )


async def until(seen: Callable[[], Awaitable[bool]], what: Callable[[], str], give_up_s: float = 300.0) -> None:
    """Waits until something is seen; ``what`` says what was to be."""
    begun_s = time.monotonic()
    while not await seen():
        assert time.monotonic() - begun_s < give_up_s, what()
        await asyncio.sleep(0.3)
