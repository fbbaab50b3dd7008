"""DAG files as the DAG processor parses them."""

from __future__ import annotations

import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch


@dataclass
class Parsed:
    """What became of one file."""

    errors: dict[str, str]
    dags: dict[str, Any]
    """As the scheduler has them: serialized, stored as JSON, and read again."""

    @property
    def error(self) -> str:
        """The one import error's last line: what the list of import errors ends with."""
        (text,) = self.errors.values()
        return text.strip().splitlines()[-1]

    def config(self, task_id: str) -> dict[str, Any]:
        (dag,) = self.dags.values()
        return dag.get_task(task_id).executor_config


def parse(folder: Path, source: str, *, for_task: str = "") -> Parsed:
    """Parses a file by the function that the DAG processor's processes run.

    Args:
        folder: where the file is to be.
        source: of the file.
        for_task: the task whose own process does it; empty: the DAG processor's.
    """
    from airflow.dag_processing import processor

    file = folder / f"dag_{uuid.uuid4().hex}.py"
    file.write_text(source, encoding="utf-8")
    request = {"file": str(file), "bundle_path": folder, "bundle_name": "dags-folder"}
    known = processor.DagFileParseRequest.model_fields
    asked = processor.DagFileParseRequest(**{name: value for name, value in request.items() if name in known})
    # Some releases leave in this process what a task that ran in it was parsed for.
    with patch.dict(os.environ, {"_AIRFLOW_PARSING_CONTEXT_TASK_ID": for_task}):
        if not for_task:
            del os.environ["_AIRFLOW_PARSING_CONTEXT_TASK_ID"]
        result = processor._parse_file(asked, logging.getLogger("processor"))
    return Parsed(
        dict(result.import_errors or {}), {dag.dag_id: _read_back(dag.data) for dag in result.serialized_dags}
    )


def _read_back(data: Any) -> Any:
    from airflow.serialization import serialized_objects

    kind = getattr(serialized_objects, "DagSerialization", None) or serialized_objects.SerializedDAG
    return kind.from_dict(json.loads(json.dumps(data)))
