"""``TaoBundleOperator``: waits until a run's signed record is there, and hands on its digest and its place.

While it waits it holds no worker slot: a triggerer looks into the ledger for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_plugin._compat import fail_exception
from airflow_plugin.seals import found_bundle
from airflow_plugin.settings import tao_here
from tao_flows.errors import ConfigError, TaoError

log = logging.getLogger("tao_flows.airflow")

CLASSPATH: Final = "airflow_plugin.bundles.TaoBundleTrigger"
"""Stored in Airflow's database with what waits: it outlives releases."""
POLL_S: Final = 5.0
"""Seconds between two looks of a triggerer into the ledger."""


class TaoBundleOperator(BaseOperator):  # type: ignore[misc]
    """Waits for the bundle of a DAG run that has ended; its result is ``{"digest", "path"}``.

    The digest is the attestation's SHA-256, the path that of the bundle where it was sealed. The task's own run ends
    after it, so its bundle is never the one that is waited for.

    Args:
        bundle_dag_id: the DAG of the run; by default the task's own.
        bundle_run_id: the run; by default the DAG's run that was sealed last, of those that there are or the first
            that there will be.
        patience: how long to wait, after which the task fails; by default as long as it takes.
        arguments: those of any operator.
    """

    template_fields: Sequence[str] = ("bundle_dag_id", "bundle_run_id")

    def __init__(
        self,
        *,
        bundle_dag_id: str = "",
        bundle_run_id: str = "",
        patience: timedelta | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.bundle_dag_id, self.bundle_run_id, self.patience = bundle_dag_id, bundle_run_id, patience

    def execute(self, context: Any) -> dict[str, str] | None:
        """Takes what is there, or waits for it in a triggerer."""
        dag_id = self.bundle_dag_id or str(context["ti"].dag_id)
        if dag_id == context["ti"].dag_id and self.bundle_run_id == context["ti"].run_id:
            raise fail_exception()("a run's bundle is sealed after its end, and this task is part of the run")
        try:
            found = _look(dag_id, self.bundle_run_id)
        except TaoError as error:  # a ledger that tasks can only write to is read by the triggerer
            log.info("looking for the bundle in the triggerer: %s", error)
            found = None
        if found is None:
            trigger = TaoBundleTrigger(dag_id, self.bundle_run_id)
            self.defer(trigger=trigger, method_name="resumed", timeout=self.patience)
        return found

    def resumed(self, context: Any, event: Mapping[str, Any] | None = None) -> dict[str, str]:  # noqa: ARG002
        """Goes on when the triggerer has found the bundle, or knows that it never will."""
        if event is None or "error" in event:
            raise fail_exception()("no bundle: " + ("no event came" if event is None else str(event["error"])))
        return {name: str(event[name]) for name in ("digest", "path")}


class TaoBundleTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires once, when the ledger has the seal of a run.

    Args:
        dag_id: the run's.
        run_id: the run; empty for the DAG's run that was sealed last.
    """

    def __init__(self, dag_id: str, run_id: str = "", **_later: Any) -> None:
        super().__init__()
        self.dag_id, self.run_id = dag_id, run_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments."""
        return CLASSPATH, {"dag_id": self.dag_id, "run_id": self.run_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks every ``POLL_S``. A ledger that does not answer is asked again; one that cannot be had is an error."""
        while True:
            try:
                found = await asyncio.to_thread(_look, self.dag_id, self.run_id)
            except ConfigError as error:
                yield TriggerEvent({"error": str(error)})
                return
            except TaoError as error:
                log.warning("looking for a bundle: %s", error)
                found = None
            if found is not None:
                yield TriggerEvent(found)
                return
            await asyncio.sleep(POLL_S)


def _look(dag_id: str, run_id: str) -> dict[str, str] | None:
    """What is there of a run's bundle; None for nothing.

    Raises:
        TaoError: the ledger cannot be read.
        ConfigError: tao-flows cannot be set up here.
    """
    tao = tao_here()
    if tao is None:
        raise ConfigError("NO_TAO", "tao-flows cannot be set up here", "this process's log says why")
    return found_bundle(tao.ledger, tao.config.namespace, dag_id, run_id)
