"""Runs a task as Airflow's task process does, in this process and without a supervisor: milliseconds a task."""

from __future__ import annotations

import inspect
import json
import signal
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

BUNDLE = "dags-folder"


@dataclass
class Supervisor:
    """Stands in for the other end of the task process's channel: keeps what it is sent, and answers for XComs."""

    startup: Any
    xcoms: Mapping[tuple[str, str], Any]
    sent: list[Any] = field(default_factory=list)

    def _get_response(self) -> Any:
        return self.startup

    def send(self, msg: Any) -> Any:
        self.sent.append(msg)
        if type(msg).__name__ == "GetXCom":
            from airflow.sdk.execution_time.comms import XComResult

            return XComResult(key=msg.key, value=self.xcoms.get((msg.task_id, msg.key)))
        if type(msg).__name__ == "GetTaskRescheduleStartDate":
            from airflow.sdk.execution_time.comms import TaskRescheduleStartDate

            return TaskRescheduleStartDate(start_date=self.startup.start_date)
        return None


@dataclass
class Outcome:
    """How a try ended in its process."""

    state: str
    error: BaseException | None
    sent: list[Any]
    ti: Any

    def of_type(self, name: str) -> list[Any]:
        """What was sent of a type, such as ``DeferTask``."""
        return [msg for msg in self.sent if type(msg).__name__ == name]


def run_task(
    folder: Path,
    source: str,
    task_id: str,
    *,
    dag_id: str = "dag",
    run_id: str = "manual__2026-01-01",
    run_type: str = "manual",
    try_number: int = 1,
    map_index: int = -1,
    max_tries: int = 0,
    xcoms: Mapping[tuple[str, str], Any] | None = None,
    next_method: str | None = None,
    next_kwargs: Mapping[str, Any] | None = None,
    conf: Mapping[str, Any] | None = None,
    reschedules: int = 0,
) -> Outcome:
    """Parses a DAG's source and runs one try of a task of it: from ``on_starting`` to ``before_stopping``.

    Args:
        folder: of DAGs, as Airflow's settings have it.
        source: of the DAG's file.
        task_id: of the task.
        dag_id, run_id, run_type, try_number, map_index, max_tries, conf: as the API server would say.
        xcoms: by task and key, what it may pull.
        next_method, next_kwargs: where a deferred try goes on, the arguments ``encoded``.
        reschedules: how often a sensor has looked already.
    """
    from airflow.sdk.api.datamodels._generated import DagRun
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import StartupDetails

    file = folder / f"{dag_id}_{uuid.uuid4().hex}.py"
    file.write_text(source, encoding="utf-8")
    now = datetime.now(timezone.utc).isoformat()
    dag_run = {
        "dag_id": dag_id, "run_id": run_id, "logical_date": now, "data_interval_start": now, "data_interval_end": now,
        "run_after": now, "start_date": now, "run_type": run_type, "state": "running", "conf": dict(conf or {}),
        "consumed_asset_events": [], "clear_number": 0, "end_date": None, "partition_key": None,
    }  # fmt: skip
    context = {
        "dag_run": {name: value for name, value in dag_run.items() if name in DagRun.model_fields}, "task_reschedule_count": reschedules, "max_tries": max_tries, "variables": [], "connections": [],
        "upstream_map_indexes": {}, "should_retry": try_number <= max_tries,
        "next_method": next_method, "next_kwargs": dict(next_kwargs) if next_kwargs is not None else None,
    }  # fmt: skip
    ti = {
        "id": str(uuid.uuid4()), "task_id": task_id, "dag_id": dag_id, "run_id": run_id, "try_number": try_number,
        "map_index": map_index, "hostname": "here", "context_carrier": {}, "dag_version_id": str(uuid.uuid4()),
    }  # fmt: skip
    details = {
        "ti": ti, "dag_rel_path": file.name, "bundle_info": {"name": BUNDLE}, "start_date": now, "ti_context": context,
        "sentry_integration": "",
    }  # fmt: skip
    supervisor = Supervisor(StartupDetails.model_validate_json(json.dumps(details)), xcoms or {})
    with patch.object(task_runner, "SUPERVISOR_COMMS", supervisor, create=True), _signals_kept():
        takes_details = bool(inspect.signature(task_runner.startup).parameters)
        runtime_ti, template, log = task_runner.startup(*([supervisor.startup] if takes_details else []))
        state, _, error = task_runner.run(runtime_ti, template, log)
        template["exception"] = error
        task_runner.finalize(runtime_ti, state, template, log, error)
    return Outcome(str(state.value), error, supervisor.sent, runtime_ti)


def encoded(arguments: Mapping[str, Any]) -> Any:
    """Arguments of the method by which a try goes on, as the API server sends them: Airflow 3.2 changed how."""
    try:
        from airflow.sdk.serde import serialize
    except ImportError:
        from airflow.serialization.serialized_objects import BaseSerialization

        return json.loads(json.dumps(BaseSerialization.serialize(dict(arguments))))
    return serialize(dict(arguments))


@contextmanager
def _signals_kept() -> Iterator[None]:
    # Airflow's runner takes SIGTERM for itself, in a process that is its own.
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
