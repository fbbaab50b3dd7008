"""A flow that may be given to another organisation."""

from __future__ import annotations

import time

from tao_flows import tao_flow, tao_task


@tao_task
def work() -> int:
    return sum(range(200_000))


@tao_flow(name="carried", persist_result=True, reroutable=True, allowed_orgs=["org-b"])
def carried(how: str = "") -> int:
    if how == "slow":
        time.sleep(300)
    if how == "fail":
        raise ValueError("as it was asked to")
    return work()
