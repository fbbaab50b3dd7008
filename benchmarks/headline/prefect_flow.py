"""The flow of Prefect's sides. Runs in Prefect's environment; ``sites.py`` starts it and talks to it by lines.

Whatever the side, the program is the same: a map over the items that have come, a flow run for each arrival. On the plain
side task and flow are Prefect's own and nothing of tao-flows is imported.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def flow_of(side: str) -> Any:
    """The flow that maps over one arrival's items and gives their results; None for an item that failed."""
    from benchmarks.headline.work import run_item

    if side == "plain":
        from prefect import flow, task
    else:
        from tao_flows import tao_flow as flow
        from tao_flows import tao_task as task

    work = task(run_item)

    def arrival(group: int, items: int) -> list[str | None]:
        futures = work.map([group] * items, list(range(items)))
        return [_told(future) for future in futures]

    return flow(arrival)


def _told(future: Any) -> str | None:
    try:
        return str(future.result())
    except Exception:  # noqa: BLE001 - what failed is counted
        return None


def serve(side: str) -> None:
    """Runs what it is told to by lines on standard input, at the times that they name."""
    run = flow_of(side)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        results: dict[str, str | None] = {}
        for group, at_s in told["arrivals"]:
            time.sleep(max(0.0, at_s - time.time()))
            results |= {f"{group}/{number}": each for number, each in enumerate(run(group, told["items"]))}
        print(json.dumps({"results": results}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
