"""A flow that starts work elsewhere: here another process that nothing of the task's is counted in."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tao_flows import tao_flow, tao_task
from tao_flows.prefect import remote

TAO_FLOWS = str(Path(sys.executable).with_name("tao-flows"))
BURN = "import time\nwhile time.process_time() < 0.5: pass"


def burn(cpu_s: float) -> None:
    started_s = time.thread_time()
    while time.thread_time() - started_s < cpu_s:
        pass


@tao_task
def reports() -> None:
    """Its work reports back."""
    with remote() as work:
        burn(0.3)
        subprocess.run(
            [TAO_FLOWS, "meter", "--label", "job", "--", sys.executable, "-c", BURN], env=work.env, check=True
        )


@tao_task
def silent() -> None:
    """Nothing is heard of its work."""
    with remote():
        burn(0.3)


@tao_task
async def silent_async() -> None:
    with remote() as work:
        assert work.variables


@tao_flow
async def flow() -> None:
    reports()
    silent()
    await silent_async()


if __name__ == "__main__":
    import asyncio

    asyncio.run(flow())
