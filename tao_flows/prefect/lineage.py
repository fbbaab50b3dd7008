"""A flow run's end as an OpenLineage event with the facet ``tao_energy``, where OpenLineage's client is set up."""

from __future__ import annotations

import threading
from typing import Final

from tao_flows.governance.formats.openlineage import event
from tao_flows.governance.lineage import emit, is_configured
from tao_flows.records import RunRecord
from tao_flows.report.model import RunReport
from tao_flows.runtime import Tao

SEND_S: Final = 5.0
"""How long the end of a flow waits for the event to be sent; its client tries on for longer while the process lives."""


def tell_lineage(tao: Tao, run: RunRecord, report: RunReport) -> None:
    """Sends the event. Never raises, and waits ``SEND_S`` at most."""
    if not is_configured():
        return

    def send() -> None:
        try:
            emit(event(run, report, tao.clock.wall_ns()))
        except Exception as ours:  # noqa: BLE001 - the run has ended as it has ended
            tao.incidents.note_error("sending an OpenLineage event", ours, run_id=run.run_id)

    thread = threading.Thread(target=send, name="tao-flows-lineage", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no more threads are to be had
        tao.incidents.note_error("sending an OpenLineage event", error, run_id=run.run_id)
        return
    thread.join(SEND_S)
    if thread.is_alive():
        summary = f"an OpenLineage event was not sent within {SEND_S:g} s"
        tao.incidents.note("LINEAGE_LATE", summary, remedy="see whether its server answers", run_id=run.run_id)
