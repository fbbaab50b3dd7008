"""A DAG run here or at another organisation, wherever that is decided: ``TaoRemoteDagOperator``.

At a partner it is begun through Airflow's REST API, and waited for in the triggerer: no slot is held. A partner whose
signed descriptor is not trusted, who does not answer or refuses, gets nothing, and the DAG runs here. One that was
asked, and whose answer was not heard, may have the run: then it starts here only once the partner says that it is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator

from airflow_plugin._compat import fail_exception
from airflow_plugin.facts import run_key
from airflow_plugin.options import merged_config
from airflow_plugin.settings import CONNECTIONS, tao_here
from airflow_plugin.taskfacts import facts_of
from tao_flows.errors import LedgerError, SourceError, TaoError
from tao_flows.federation.airflow_api import REFUSED, AirflowApi
from tao_flows.federation.claims import Sent
from tao_flows.federation.descriptor import Descriptor
from tao_flows.federation.records import FOR_RUN
from tao_flows.options import OFF
from tao_flows.partners import PartnerSpec
from tao_flows.runtime import Tao

if TYPE_CHECKING:
    from airflow.sdk import Context

ENGINE: Final = "airflow"
DONE_METHOD: Final = "tao_remote_done"
"""Where a task that waited for a partner's run goes on: stored with what is deferred, it outlives releases."""
NEVER_THERE: Final = "never there"
"""What a trigger says of a run that was asked for, and that the partner does not have."""
SILENT: Final = "silent"
"""And of one of which nothing is heard any more."""
_HASH_DIGITS: Final = 24


class TaoRemoteDagOperator(TriggerDagRunOperator):  # type: ignore[misc]
    """Triggers a DAG here, or the DAG of that id at a partner, and waits for its end without holding a slot.

    Args:
        allowed_orgs: the partners that may be given the work; a rule can allow fewer.
        poll_s: seconds between two looks at a partner's run.
        arguments: those of ``TriggerDagRunOperator``; ``wait_for_completion`` and ``deferrable`` are on by default.
    """

    def __init__(self, *, allowed_orgs: Iterable[str], poll_s: float = 10.0, **arguments: Any) -> None:
        config = merged_config(arguments.pop("executor_config", None), {"allowed_orgs": list(allowed_orgs)})
        arguments = {"wait_for_completion": True, "deferrable": True, **arguments}
        super().__init__(executor_config=config, **arguments)
        self.poll_s = poll_s
        self._sure = True
        """The partner has confirmed that it has the run."""

    def execute(self, context: Context) -> Any:
        """Decides, and triggers the run.

        Raises:
            TaskDeferred, DagRunTriggerException: as Airflow has its own operator wait.
        """
        tao = tao_here()
        sent = None if tao is None else self._sent(tao, context["ti"])
        if sent is None:
            return super().execute(context)
        from airflow_plugin.remote_trigger import RemoteDagTrigger

        trigger = RemoteDagTrigger(
            org=sent.org,
            dag_id=sent.flow,
            run_id=sent.remote_id,
            poll_s=self.poll_s,
            sure=self._sure,
            waiter=[sent.key.flow, sent.key.run_id, sent.key.task, context["ti"].map_index],
        )
        return self.defer(trigger=trigger, method_name=DONE_METHOD)

    def tao_remote_done(self, context: Context, event: Mapping[str, Any] | None = None) -> Any:
        """Goes on when a partner's run has ended: its id. What never reached the partner runs here.

        Raises:
            RuntimeError: it did not succeed.
            AirflowFailException: nothing was heard of it for too long; no retry follows, as it may be going on there.
            TaskDeferred, DagRunTriggerException: it runs here, as Airflow has its own operator wait.
        """
        said = event or {}
        if said.get("state") == NEVER_THERE:
            return super().execute(context)
        if said.get("state") == SILENT:
            what = f"nothing was heard of the run {said.get('run_id')} at {said.get('org')} for too long"
            raise fail_exception()(f"{what}: it may be going on there, so that no retry follows")
        if said.get("state") != "success":
            raise RuntimeError(f"the run {said.get('run_id')} at {said.get('org')} ended as {said.get('state')}")
        context["ti"].xcom_push(key="trigger_run_id", value=str(said["run_id"]))
        return str(said["run_id"])

    def _sent(self, tao: Tao, ti: Any) -> Sent | None:
        """What a partner was sent; None where the DAG runs here. Never raises."""
        try:
            offer = self._chosen(tao, ti)
            return None if offer is None else self._send(tao, ti, offer)
        except Exception as ours:  # noqa: BLE001 - it runs here, as it would without us
            tao.incidents.note_error("sending a DAG run to a partner", ours, run_id=ti.run_id, task=ti.task_id)
            return None

    def _chosen(self, tao: Tao, ti: Any) -> Descriptor | None:
        config, facts = tao.config, facts_of(ti)
        known = [each.descriptor for each in tao.partners.usable(config) if each.descriptor is not None]
        here = {each.id: each for each in known if each.endpoint.engine == ENGINE}
        reach = {pool: each for pool, each in here.items() if each.endpoint.flow == self.trigger_dag_id}
        if not reach or facts.options.get(OFF) is True:
            return None
        can = {"can_reroute": True, "reaches": reach.__contains__, "ahead": True}
        # Who names partners means that the work may go to them.
        ask = replace(facts.ask(config.namespace, config.who, **can), reroutable=True)
        verdict = tao.admission.ask(ask, config)
        return reach.get(verdict.pool) if verdict.action == "reroute" else None

    def _send(self, tao: Tao, ti: Any, offer: Descriptor) -> Sent:
        config, key = tao.config, run_key(ti, tao.config.namespace)
        named = f"{key.namespace}\0{key.flow}\0{key.run_id}\0{key.task}\0{key.instance}\0{key.try_number}"
        digest = hashlib.sha256(named.encode()).hexdigest()[:_HASH_DIGITS]
        remote_id = f"{FOR_RUN}{config.org}.{digest}"
        facts = facts_of(ti)
        budget = facts.given.budget
        sent = Sent(
            key=replace(key, instance=remote_id),
            org=offer.org,
            pool=offer.id,
            flow=offer.endpoint.flow,
            sent_wall_ns=tao.clock.wall_ns(),
            segment=tao.segment,
            who=facts.who(config.who),
            budget=budget if isinstance(budget, str) else "",
            whole_run=False,
        )
        api = api_of(config.partners[offer.org])
        api.state(offer.endpoint.flow, remote_id)  # who does not answer this is not asked for a run
        self._sure = True
        try:
            api.begin(offer.endpoint.flow, remote_id, dict(self.conf or {}))
        except SourceError as error:
            if error.code == REFUSED:
                raise
            self._sure = False
            tao.incidents.note_error("sending a DAG run to a partner", error, run_id=ti.run_id, task=ti.task_id)
        try:
            tao.claims.begun(sent)
        except LedgerError as error:  # it runs there all the same: its energy will not be known here
            tao.incidents.note_error("taking note of a run at a partner", error, run_id=ti.run_id, task=ti.task_id)
        return sent


def api_of(spec: PartnerSpec) -> AirflowApi:
    """A partner's API, with the key that settings or one of Airflow's connections name.

    Raises:
        SourceError: PARTNER_KEY, the key is named and not to be had.
    """
    if not spec.key_conn:
        return AirflowApi(spec.org, spec.api_url, spec.user, spec.key())
    try:
        found = CONNECTIONS.find(spec.key_conn)
    except TaoError as error:
        raise SourceError("PARTNER_KEY", f"{spec.name}: {error.summary}", error.remedy) from error
    return AirflowApi(spec.org, spec.api_url, spec.user or found.login, found.password)
