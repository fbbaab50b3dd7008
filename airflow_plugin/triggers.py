"""The trigger of a task that waits for a better time: it fires when the wait is over, and by the latest start at any rate.

Thousands of them share one poll in a triggerer, see ``waitroom``. What is stored of one is small, and encrypted by
Airflow as any trigger's arguments are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_plugin.facts import Facts
from airflow_plugin.waitroom import WaitRoom
from tao_flows.records import Deferral, RunKey
from tao_flows.units import s_from_ns

log = logging.getLogger("tao_flows.airflow")

CLASSPATH: Final = "airflow_plugin.triggers.TaoTrigger"
"""Stored in Airflow's database with what waits: it outlives releases."""
MOST_HELD_S: Final = 10.0
_PLAN: Final = ("pool", "ready_wall_ns", "start_wall_ns", "latest_wall_ns", "reason")


class TaoTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires once, when the task is to start.

    Args:
        facts: of the try, as ``Facts.to_json`` wrote them.
        deferral: the plan, as ``deferral_json`` wrote it.
        payload: what its event is to carry: where the task resumes after a deferral of its author's, what the author's
            own trigger has said; nobody else reads it.
        not_before_wall_ns: an event that would come sooner waits until then, ``MOST_HELD_S`` at most: Airflow can take
            a task that was deferred from a worker, and is back at once, for one that failed.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        deferral: Mapping[str, Any],
        payload: Any = None,
        not_before_wall_ns: int = 0,
        **_later: Any,
    ) -> None:
        super().__init__()
        self.facts, self.deferral, self.payload = dict(facts), dict(deferral), payload
        self.not_before_wall_ns = not_before_wall_ns

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments."""
        names = ("facts", "deferral", "payload", "not_before_wall_ns")
        return CLASSPATH, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Waits, with all others of this triggerer. Where that fails it fires: else Airflow would fail the task."""
        try:
            await WaitRoom.here().wait(Facts.from_json(self.facts), deferral_from_json(self.deferral))
        except Exception:
            log.warning("a wait cannot be looked after: the task starts", exc_info=True)
        if (early_s := s_from_ns(self.not_before_wall_ns - time.time_ns())) > 0:
            await asyncio.sleep(min(early_s, MOST_HELD_S))
        yield TriggerEvent(self.payload)


def deferral_json(deferral: Deferral) -> dict[str, Any]:
    """A plan as ``deferral_from_json`` reads it; its state is the ledger's to know."""
    return {"key": asdict(deferral.key), **{name: getattr(deferral, name) for name in _PLAN}}


def deferral_from_json(stored: Mapping[str, Any]) -> Deferral:
    """The plan of ``deferral_json``."""
    return Deferral(RunKey(**stored["key"]), **{name: stored[name] for name in _PLAN})
