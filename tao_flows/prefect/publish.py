"""The report of a flow run as two artifacts: a page to read and a table to sort."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from tao_flows.errors import TaoError
from tao_flows.inversion import follow
from tao_flows.ledger.reads import Scope, overheads
from tao_flows.prefect import events
from tao_flows.prefect._compat import ArtifactCreate, impatient_client
from tao_flows.prefect.batch_report import item_rows
from tao_flows.prefect.flow_run import RunMemory, flow_windows, settled_tasks
from tao_flows.prefect.settings import tao_here
from tao_flows.records import UNSEEN_RUN, DecisionRecord, HostAccount, Incident, RunRecord
from tao_flows.report.wanted import report_wanted
from tao_flows.runtime import Tao
from tao_flows.telemetry.procfs import is_alive
from tao_flows.units import NS_PER_S

if TYPE_CHECKING:
    from tao_flows.report.model import RunReport

_GOOD_STATES = frozenset({"completed", "cached"})
_LATE_S: Final = 86_400.0
"""The runs of a day tell whether a flow's overhead takes over."""
MOST_CHARACTERS: Final = 300_000
"""Of the page, its charts included; one that would be longer leaves out what was weighed."""


def tao_report(flow: Any, flow_run: Any, state: Any) -> None:
    """A flow hook, for whatever end a run comes to: writes the run's end and publishes its report.

    Prefect calls it in the flow's process, or in a fresh one when that was killed, by these argument names. It never
    raises, and takes at most as long as one impatient call of the API for each artifact; and ``SEND_S`` of ``lineage``
    and ``SEAL_S`` of ``sealing`` where they have something to do.
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
        report = _publish(tao, memory)
        if not late:
            _hand_on(tao, memory, report)
    except Exception as ours:  # noqa: BLE001 - the run has ended as it has ended
        tao.incidents.note_error("reporting a flow run", ours, run_id=run_id)


def page_key(flow: str) -> str:
    """The key of the page's artifact."""
    return f"tao-energy-{slug_of(flow)}"


def slug_of(flow: str) -> str:
    """A flow's name as artifact keys take it."""
    return re.sub(r"[^a-z0-9]+", "-", flow.lower()).strip("-") or "flow"


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
        _hand_on(tao, memory, _publish(tao, memory))
    except Exception as ours:  # noqa: BLE001 - called by the task runner, which must not hear of it
        tao.incidents.note_error("reporting a flow run again", ours, run_id=memory.run.run_id)


def _hand_on(tao: Tao, memory: RunMemory, report: RunReport) -> None:
    """What others are to know of a run that is over: its lineage event, and its bundle where nobody outside seals it."""
    from tao_flows.prefect.lineage import tell_lineage
    from tao_flows.prefect.sealing import seal_here

    tell_lineage(tao, memory.run, report)
    seal_here(tao, memory.ref)


def _publish(tao: Tao, memory: RunMemory) -> RunReport:
    from tao_flows.report.markdown import render_markdown
    from tao_flows.report.model import build_report
    from tao_flows.report.tables import table_rows
    from tao_flows.report.text import energy_text

    decisions, accounts, incidents = _rest(tao, memory)
    tasks = settled_tasks(tao, memory)
    report = build_report(memory.run, tasks, decisions, accounts, incidents)
    if report.inversion:
        _tell_inversion(tao, memory.run)
    good = memory.run.state in _GOOD_STATES
    if not report_wanted(tao.config.report_artifacts, memory.run.run_id, good=good):
        return report
    said = energy_text(report.energy) + ("" if report.energy.value_j is None else f", {report.energy.quality}")
    run_id = UUID(memory.run.run_id)
    text = render_markdown(report, _weighed(tao, memory, decisions))
    if len(text) > MOST_CHARACTERS:
        text = render_markdown(report)
    page = ArtifactCreate(
        key=page_key(memory.run.flow),
        type="markdown",
        description=said,
        data=text,
        flow_run_id=run_id,
    )
    table = ArtifactCreate(
        key=f"tao-tasks-{slug_of(memory.run.flow)}",
        type="table",
        description="Energy of each task try, by tao-flows",
        data=json.dumps([*table_rows(report), *item_rows(memory.batches, tasks)]),
        flow_run_id=run_id,
    )
    try:
        with impatient_client() as client:
            client.create_artifact(page)
            client.create_artifact(table)
    except Exception as ours:  # noqa: BLE001 - what is left to do does not need the API
        tao.incidents.note_error("reporting a flow run", ours, run_id=memory.run.run_id)
    return report


def _tell_inversion(tao: Tao, run: RunRecord) -> None:
    """Emits ``tao.inversion`` where a run whose overhead took more than its work is not the only one of late."""
    try:
        since_ns = tao.clock.wall_ns() - round(_LATE_S * NS_PER_S)
        runs = overheads(tao.ledger, Scope(since_ns, "prefect", run.flow, namespace=run.namespace))
    except TaoError as error:
        tao.incidents.note_error("looking for inversion", error, run_id=run.run_id)
        return
    state = follow(runs)
    if state.inverted:
        events.inverted(tao, run, state)


def _weighed(tao: Tao, memory: RunMemory, decisions: Sequence[DecisionRecord]) -> str:
    """What was decided, for the page; empty where there was nothing to choose, or the ledger does not answer."""
    answers = [decision.answer for decision in decisions]
    named = {str(answer["budget"]) for answer in answers if answer.get("budget")}
    if not named and not any(_is_choice(answer) for answer in answers):
        return ""
    from tao_flows.report.pages import described_pools
    from tao_flows.report.runview import read_run_view
    from tao_flows.report.weighed import weighed_markdown

    try:
        view = read_run_view(tao.ledger, memory.run, pools=described_pools(tao.config), clock=tao.clock)
        return weighed_markdown(view, decisions, tao.admission.budgets.standings(sorted(named)))
    except TaoError as error:
        tao.incidents.note_error("reading what was decided", error, run_id=memory.run.run_id)
        return ""


def _is_choice(answer: Mapping[str, Any]) -> bool:
    candidates = answer.get("candidates")
    return answer.get("action") != "run" or (isinstance(candidates, (list, tuple)) and len(candidates) > 1)


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
