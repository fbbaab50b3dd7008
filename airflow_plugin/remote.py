"""Operators whose work runs elsewhere: what their process does is dispatch, and what the work takes is not known here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase, translate
from typing import Any, Final

from airflow_plugin.provider_info import REMOTE_OPTION, SECTION
from tao_flows.parent import COUNTED_BY_ENV, PARENT_ENV, key_text
from tao_flows.records import RunKey, Segment

PATTERNS: Final = (
    # Pods and containers: they are not among the processes that the task's own starts.
    "Kubernetes*Operator", "GKE*Operator", "EksPodOperator", "AzureContainerInstancesOperator", "Docker*Operator",
    "Ecs*Operator", "BatchOperator", "CloudRun*Operator", "AzureBatchOperator", "SSHOperator", "SSHRemoteJobOperator",
    # Clusters.
    "Spark*Operator", "Livy*Operator", "Emr*Operator", "Dataproc*Operator", "Dataflow*Operator", "Databricks*Operator",
    "AzureSynapse*Operator", "HiveOperator", "Glue*Operator", "Flink*Operator", "SageMaker*Operator",
    "CreateCustom*TrainingJobOperator", "CreateAutoML*TrainingJobOperator", "AzureDataFactory*Operator",
    "StepFunction*Operator", "Beam*Operator", "Submit*RayJob*", "MSSparkOperator",
    # Warehouses and services.
    "BaseSQLOperator", "BigQuery*Operator", "Snowflake*Operator", "Snowpark*Operator", "Redshift*Operator",
    "AthenaOperator", "DbtCloud*Operator", "Airbyte*Operator", "Fivetran*Operator", "AzureDataExplorer*Operator",
)  # fmt: skip
"""Class names of operators; what derives from one of them counts too."""
_KNOWN: Final = re.compile("|".join(map(translate, PATTERNS)))
_ENVIRONMENTS: Final = ("env_vars", "environment")
"""Attributes of such operators that hold the environment of what they start."""


def is_remote(task: Any, more: Sequence[str] = ()) -> bool:
    """Whether a task's work runs elsewhere. A sensor's is to look, and runs here.

    Args:
        task: the operator.
        more: patterns beside those of ``PATTERNS``; after ``-`` stands what is none. The nearest class that one of
            them matches decides, and at the same class one with ``-``.
    """
    names = [each.__name__ for each in type(task).__mro__]
    if "BaseSensorOperator" in names:
        return False
    for name in names:
        if any(pattern.startswith("-") and fnmatchcase(name, pattern[1:].strip()) for pattern in more):
            return False
        if _KNOWN.match(name) or any(fnmatchcase(name, pattern) for pattern in more):
            return True
    return False


def patterns_given() -> tuple[str, ...]:
    """The patterns of Airflow's configuration."""
    from airflow.configuration import conf

    given = conf.get(SECTION, REMOTE_OPTION, fallback=None) or ""
    return tuple(pattern.strip() for pattern in given.split(",") if pattern.strip())


@contextmanager
def named_as_parent(key: RunKey, counted_by: Segment | None) -> Iterator[None]:
    """What is started meanwhile finds the try that it belongs to in its environment.

    Args:
        key: of the try.
        counted_by: the segment whose figure has all that this process starts in it; None where none has.
    """
    given = {PARENT_ENV: key_text(key), COUNTED_BY_ENV: None if counted_by is None else counted_by.id}
    before = {name: os.environ.get(name) for name in given}
    _set(given)
    try:
        yield
    finally:
        _set(before)


def tell_remote(task: Any, key: RunKey) -> None:
    """Puts the run key into the environment of what an operator starts elsewhere, where it holds one."""
    for name in _ENVIRONMENTS:
        held = getattr(task, name, None)
        if isinstance(held, dict):
            setattr(task, name, {**held, PARENT_ENV: key_text(key)})
        elif isinstance(held, list) and (make := _maker(held)) is not None:
            setattr(task, name, [*held, make(name=PARENT_ENV, value=key_text(key))])


def _maker(held: list[Any]) -> Any:
    """What makes one more of the variables in a list: of a pod, where it is empty."""
    if held:
        return type(held[-1]) if hasattr(held[-1], "value") else None
    try:
        from kubernetes.client.models import V1EnvVar
    except ImportError:
        return None
    return V1EnvVar


def _set(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
