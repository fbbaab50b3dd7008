"""The report of a flow run as two artifacts: a page to read and a table to sort."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from tao_flows.errors import TaoError
from tao_flows.prefect._compat import ArtifactCreate, impatient_client
from tao_flows.prefect.flow_run import RunMemory, flow_windows, settled_tasks
from tao_flows.prefect.settings import tao_here
from tao_flows.records import UNSEEN_RUN, DecisionRecord, HostAccount, Incident, RunRecord
from tao_flows.runtime import Tao
from tao_flows.telemetry.procfs import is_alive

_GOOD_STATES = frozenset({"completed", "cached"})


def tao_report(flow: Any, flow_run: Any, state: Any) -> None:
    """A flow hook, for whatever end a run comes to: writes the run's end and publishes its report.

    Prefect calls it in the flow's process, or in a fresh one when that was killed, by these argument names. It never
    raises, and takes at most as long as one impatient call of the API for each artifact.
    """
    tao = tao_here()
    if tao is None or tao.config.mode == "off":
        return
    run_id = str(flow_run.id)
    try:
        memory = flow_windows.find(run_id) or _recalled(tao, flow, flow_run)
        _end(tao, memory, state)
        window = memory.window
        late = window is not None and window.when_settled(partial(_publish_again, tao, memory))
        if window is not None:
            window.account(final=not late)
        _publish(tao, memory)
    except Exception as ours:  # noqa: BLE001 - the run has ended as it has ended
        tao.incidents.note_error("reporting a flow run", ours, run_id=run_id)


def _recalled(tao: Tao, flow: Any, flow_run: Any) -> RunMemory:
    """What the ledger knows of a run whose own process is gone."""
    run_id = str(flow_run.id)
    tao.ledger.reconcile(is_alive)
    known = [run for run in tao.ledger.find_runs(run_id) if run.run_id == run_id]
    if known:
        return RunMemory(known[0])
    return RunMemory(
        RunRecord(
            engine="prefect",
            namespace=tao.config.namespace,
            flow=flow.name,
            run_id=run_id,
            state=UNSEEN_RUN,
            started_wall_ns=tao.clock.wall_ns(),
            segment=tao.segment,
            name=flow_run.name,
        )
    )


def _end(tao: Tao, memory: RunMemory, state: Any) -> None:
    name = "cancelled" if state.is_cancelling() else str(state.name).lower()
    memory.run = replace(memory.run, state=name, ended_wall_ns=tao.clock.wall_ns())
    tao.ledger.put_run(memory.run)


def _publish_again(tao: Tao, memory: RunMemory) -> None:
    """For tasks that were submitted, never waited for, and ended after the flow: the report is issued anew."""
    try:
        if memory.window is not None:
            memory.window.account(final=True)
        _publish(tao, memory)
    except Exception as ours:  # noqa: BLE001 - called by the task runner, which must not hear of it
        tao.incidents.note_error("reporting a flow run again", ours, run_id=memory.run.run_id)


def _publish(tao: Tao, memory: RunMemory) -> None:
    wanted = tao.config.report_artifacts
    if wanted == "never" or (wanted == "failures" and memory.run.state in _GOOD_STATES):
        return
    from tao_flows.report.markdown import render_markdown
    from tao_flows.report.model import build_report
    from tao_flows.report.tables import table_rows
    from tao_flows.report.text import energy_text

    decisions, accounts, incidents = _rest(tao, memory)
    report = build_report(memory.run, settled_tasks(tao, memory), decisions, accounts, incidents)
    said = energy_text(report.energy) + ("" if report.energy.value_j is None else f", {report.energy.quality}")
    slug = re.sub(r"[^a-z0-9]+", "-", memory.run.flow.lower()).strip("-") or "flow"
    run_id = UUID(memory.run.run_id)
    page = ArtifactCreate(
        key=f"tao-energy-{slug}",
        type="markdown",
        description=said,
        data=render_markdown(report),
        flow_run_id=run_id,
    )
    table = ArtifactCreate(
        key=f"tao-tasks-{slug}",
        type="table",
        description="Energy of each task try, by tao-flows",
        data=json.dumps(table_rows(report)),
        flow_run_id=run_id,
    )
    with impatient_client() as client:
        client.create_artifact(page)
        client.create_artifact(table)


def _rest(tao: Tao, memory: RunMemory) -> tuple[list[DecisionRecord], list[HostAccount], list[Incident]]:
    """Decisions, accounts and incidents of a run: the ledger's and, first, this process's."""
    decisions = {(d.key, d.decided_wall_ns): d for d in memory.decisions}
    accounts = {(a.host, a.window): a for a in memory.accounts.values()}
    incidents = {(i.code, i.task): i for i in tao.incidents.of_run(memory.run.run_id)}
    try:
        for decision in tao.ledger.decisions(memory.ref):
            decisions.setdefault((decision.key, decision.decided_wall_ns), decision)
        for account in tao.ledger.accounts(memory.ref):
            accounts.setdefault((account.host, account.window), account)
        for incident in tao.ledger.incidents(memory.ref):
            incidents.setdefault((incident.code, incident.task), incident)
    except TaoError as error:
        tao.incidents.note_error("reading a run's records", error, run_id=memory.run.run_id)
    return list(decisions.values()), list(accounts.values()), list(incidents.values())
