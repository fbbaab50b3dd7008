"""``@task.tao``: a TaskFlow task with options of ours. Airflow finds it by the provider's ``task-decorators``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from airflow_plugin.operators import with_ours

if TYPE_CHECKING:
    from typing import ParamSpec, TypeVar

    from airflow.sdk.bases.decorator import Task

    P = ParamSpec("P")
    R = TypeVar("R")


@overload
def tao_task(python_callable: Callable[P, R], /) -> Task[P, R]: ...
@overload
def tao_task(
    python_callable: None = None, /, multiple_outputs: bool | None = None, **arguments: Any
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def tao_task(python_callable: Any = None, multiple_outputs: bool | None = None, **arguments: Any) -> Any:
    """Makes a TaskFlow task of a Python function, or adds options to a task that another decorator made.

    Args:
        python_callable: the function, or what ``@task.bash``, ``@task.virtualenv`` and their like made of it.
        multiple_outputs: as of ``@task``.
        arguments: those of ``@task``, and options as ``tao`` takes them.

    Raises:
        InputError: an option of ours is malformed, where it is written.
    """
    from airflow.providers.standard.decorators.python import python_task
    from airflow.providers.standard.operators.python import PythonOperator

    if python_callable is None:
        with_ours(PythonOperator, arguments)  # a mistake is told where it is written
        return functools.partial(tao_task, multiple_outputs=multiple_outputs, **arguments)
    if getattr(python_callable, "_airflow_is_task_decorator", False):
        arguments = {"executor_config": python_callable.kwargs.get("executor_config"), **arguments}
        return python_callable.override(**with_ours(python_callable.operator_class, arguments))
    arguments = with_ours(PythonOperator, {"task_id": python_callable.__name__, **arguments})
    return python_task(python_callable=python_callable, multiple_outputs=multiple_outputs, **arguments)
