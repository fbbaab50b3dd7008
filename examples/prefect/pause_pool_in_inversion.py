"""Has Prefect pause a work pool while an energy budget is in Inversion, and resume it afterwards.

tao-flows emits the event `tao.budget.regime` when a decision finds a budget in another regime than the one before it,
and once in every process that begins in another than Standard. Two automations act on it:

- one pauses the pool when the budget is in Inversion: its joules, spent and reserved, have reached the limit;
- one resumes it when no such event has come for a while. If the budget is still in Inversion then, the first run that
  is let through says so, and the pool is paused again.

    python examples/prefect/pause_pool_in_inversion.py WORK_POOL BUDGET [--quiet SECONDS]

Run it again to change the automations; they are found by their names.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.events.actions import PauseWorkPool, ResumeWorkPool
from prefect.events.schemas.automations import EventTrigger, Posture


def automations(pool: str, pool_id: UUID, budget: str, quiet: timedelta) -> list[Automation]:
    """The two automations for a pool and a budget.

    Args:
        pool: the work pool's name.
        pool_id: the work pool's id.
        budget: the budget's name in tao-flows' settings.
        quiet: how long no Inversion is to be told before the pool is resumed.
    """
    event = {"tao.budget.regime"}
    inversion = {"prefect.resource.id": f"tao.budget.{budget}", "tao.regime": "inversion"}
    return [
        Automation(
            name=f"tao-flows: pause {pool} in Inversion of {budget}",
            trigger=EventTrigger(expect=event, match=inversion, posture=Posture.Reactive, threshold=1),
            actions=[PauseWorkPool(source="selected", work_pool_id=pool_id)],
        ),
        Automation(
            name=f"tao-flows: resume {pool} after Inversion of {budget}",
            # Proactive: it fires when, after one such event, no further one has come within that time.
            trigger=EventTrigger(
                after=event, expect=event, match=inversion, posture=Posture.Proactive, threshold=1, within=quiet
            ),
            actions=[ResumeWorkPool(source="selected", work_pool_id=pool_id)],
        ),
    ]


def main() -> None:
    """Creates the automations, or replaces those of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", help="the work pool to pause")
    parser.add_argument("budget", help="the energy budget")
    parser.add_argument("--quiet", type=float, default=3600.0, help="seconds without Inversion before it is resumed")
    given = parser.parse_args()
    with get_client(sync_client=True) as client:
        pool_id = client.read_work_pool(given.pool).id
        for automation in automations(given.pool, pool_id, given.budget, timedelta(seconds=given.quiet)):
            for earlier in client.read_automations_by_name(automation.name):
                client.delete_automation(earlier.id)
            print(f"created: {automation.create(_sync=True).name}")


if __name__ == "__main__":
    main()
