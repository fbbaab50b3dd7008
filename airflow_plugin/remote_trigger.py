"""The trigger of a task that waits for a partner's DAG run: looked at now and then, and followed by its record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_plugin._compat import deferred_tasks
from airflow_plugin.remote_dag import NEVER_THERE, SILENT, api_of
from airflow_plugin.settings import tao_here
from tao_flows.errors import TaoError
from tao_flows.federation.airflow_api import FINAL, GONE, AirflowApi
from tao_flows.partners import PartnerSpec
from tao_flows.records import TaskState
from tao_flows.runtime import Tao

CLASSPATH: Final = "airflow_plugin.remote_trigger.RemoteDagTrigger"
"""Stored in Airflow's database with what waits: it outlives releases."""
RECORD_WAIT_S: Final = 30.0
"""So long the task waits for the record of a run that has ended; `tao-flows pools fetch` takes what comes later."""
STATE_WAIT_S: Final = 10.0
"""So long a trigger that is stopped waits for its task's state at most."""
_ENDS: Final = {"success": TaskState.COMPLETED}


class RemoteDagTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires when a partner's run has ended.

    Args:
        org: the partner.
        dag_id: its DAG.
        run_id: the run.
        poll_s: seconds between two looks.
        sure: the partner has confirmed that it has the run.
        waiter: the DAG, the run, the task and the map index of who waits.
    """

    def __init__(
        self,
        org: str,
        dag_id: str,
        run_id: str,
        poll_s: float = 10.0,
        sure: bool = True,
        waiter: Sequence[Any] = (),
        **_later: Any,
    ) -> None:
        super().__init__()
        self.org, self.dag_id, self.run_id, self.poll_s = org, dag_id, run_id, poll_s
        self.sure, self.waiter = sure, list(waiter)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments; the key is in none of them."""
        return CLASSPATH, {
            name: getattr(self, name) for name in ("org", "dag_id", "run_id", "poll_s", "sure", "waiter")
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks until the run has ended. A partner that does not answer is asked again, as long as the settings say."""
        tao = await asyncio.to_thread(tao_here)
        try:
            state = await self._end(tao)
        except asyncio.CancelledError as stopped:
            # Airflow 3.3 calls ``on_kill`` itself. A triggerer that shuts down says so, and the task waits on.
            if not hasattr(BaseTrigger, "on_kill") and not stopped.args and await self._is_unwanted():
                await self.on_kill()
            raise
        if tao is not None and state != SILENT:
            await self._account(tao, state)
        yield TriggerEvent({"org": self.org, "run_id": self.run_id, "state": state})

    async def _end(self, tao: Tao | None) -> str:
        """How the run has ended, or ``NEVER_THERE`` or ``SILENT``."""
        spec = None if tao is None else tao.config.partners.get(self.org)
        bound_s = PartnerSpec(self.org).give_up_after_s if spec is None else spec.give_up_after_s
        heard_s = time.monotonic()
        while True:
            try:
                state = await asyncio.to_thread(self._state, tao)
            except TaoError as error:
                self.log.warning("the run %s at %s cannot be looked at: %s", self.run_id, self.org, error)
                if time.monotonic() - heard_s >= bound_s:
                    return SILENT
            else:
                if state == GONE and not self.sure:
                    return NEVER_THERE
                if state in {*FINAL, GONE}:
                    return state
                heard_s, self.sure = time.monotonic(), True
            await asyncio.sleep(self.poll_s)

    async def _is_unwanted(self) -> bool:
        """Whether the task does not wait any more: else another triggerer looks after it from now on."""
        try:
            dag_id, run_id, task_id, map_index = self.waiter
            asked = asyncio.to_thread(deferred_tasks, dag_id, run_id, [task_id])
            return (task_id, map_index) not in await asyncio.wait_for(asked, STATE_WAIT_S)
        except Exception as error:  # noqa: BLE001 - the run goes on there
            self.log.warning("whether the run %s at %s is wanted cannot be told: %s", self.run_id, self.org, error)
            return False

    async def on_kill(self) -> None:
        """Stops the run, where the task that waits for it is stopped."""
        tao = await asyncio.to_thread(tao_here)
        try:
            await asyncio.to_thread(lambda: self._api(tao).stop(self.dag_id, self.run_id))
        except TaoError as error:
            self.log.warning("the run %s at %s cannot be stopped: %s", self.run_id, self.org, error)

    def _api(self, tao: Tao | None) -> AirflowApi:
        spec = None if tao is None else tao.config.partners.get(self.org)
        if spec is None:
            raise TaoError("PARTNER_REFUSED", f"the settings name no partner {self.org}")
        return api_of(spec)

    def _state(self, tao: Tao | None) -> str:
        return self._api(tao).state(self.dag_id, self.run_id)

    async def _account(self, tao: Tao, state: str) -> None:
        """Takes note of the end, and waits a while for the record: the claim is then in the ledger when the task goes on."""
        give_up_s = time.monotonic() + RECORD_WAIT_S
        try:
            await asyncio.to_thread(tao.claims.ended, self.org, self.run_id, _ENDS.get(state, TaskState.FAILED))
            while not await asyncio.to_thread(tao.claims.settled, self.org, self.run_id, tao.config):
                if time.monotonic() >= give_up_s:
                    return
                await asyncio.sleep(2.0)
        except Exception as ours:  # noqa: BLE001 - the task goes on without its claim
            tao.incidents.note_error("accounting for a run at a partner", ours)
