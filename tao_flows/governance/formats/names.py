"""Names that documents of other formats call a run by."""

from __future__ import annotations

import uuid
from typing import Final

import tao_flows
from tao_flows.records import RunRecord

TOOL: Final = "tao-flows"
PRODUCER: Final = f"urn:{TOOL}:{tao_flows.__version__}"
_RUNS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:tao-flows:runs")


def run_uuid(run: RunRecord) -> str:
    """The run's id where that is a UUID, else a UUID that is always the same for the run."""
    try:
        return str(uuid.UUID(run.run_id))
    except ValueError:
        return derived_uuid(run, "")


def derived_uuid(run: RunRecord, kind: str) -> str:
    """A UUID of something of a run, such as a document of it."""
    # No separator that a name can hold: two runs never get one text.
    return str(uuid.uuid5(_RUNS, repr((kind, run.engine, run.namespace, run.flow, run.run_id))))
