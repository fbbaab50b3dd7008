"""What the engine's tests share."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import RunRecord, TaskRecord


def burn(cpu_s: float) -> float:
    """Uses CPU on this thread and says how much it was."""
    started_s = time.thread_time()
    while (spent_s := time.thread_time() - started_s) < cpu_s:
        pass
    return spent_s


def only_run(ledger: Ledger) -> RunRecord:
    (run,) = ledger.runs()
    return run


def ref(run: RunRecord) -> RunRef:
    return RunRef(run.engine, run.namespace, run.run_id, run.flow)


def tasks_of(ledger: Ledger, name: str | None = None) -> Sequence[TaskRecord]:
    """The tasks of the only run, by task name."""
    tasks = ledger.tasks(ref(only_run(ledger)))
    return [task for task in tasks if name is None or task.key.task == name]


def artifacts_of(run_id: str) -> dict[str, list[object]]:
    """By key, what the artifacts of a flow run hold, oldest first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        which = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        found = client.read_artifacts(artifact_filter=which)
    by_key: dict[str, list[object]] = {}
    # Results have artifacts too, without a key.
    for artifact in sorted((a for a in found if a.key), key=lambda artifact: artifact.created):
        by_key.setdefault(artifact.key, []).append(artifact.data)
    return by_key
