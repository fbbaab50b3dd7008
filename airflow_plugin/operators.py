"""Options of ours for any operator: ``tao(operator, ...)`` and ``TaoOperator(operator_class=..., ...)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_plugin.options import TaoArgs, merged_config, set_config
from tao_flows.errors import InputError
from tao_flows.options import NAMES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from airflow_plugin.bundles import TaoBundleOperator

__all__ = ["TaoBundleOperator", "TaoOperator", "tao", "with_ours"]

Task = TypeVar("Task")
Operator = TypeVar("Operator")


def __getattr__(name: str) -> Any:
    """``TaoBundleOperator``: imported when it is asked for, as it is an operator of Airflow's own kind."""
    if name != "TaoBundleOperator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from airflow_plugin.bundles import TaoBundleOperator

    return TaoBundleOperator


def tao(task: Task, /, **options: Unpack[TaoArgs]) -> Task:
    """Attaches options to a task, and returns it as it is.

    Args:
        task: any operator, mapped or not, or what calling a TaskFlow function returned.
        options: ``budget`` (a name, an energy such as ``"40 J"``, or an ``EnergyBudget``), ``deadline``, ``max_defer``,
            ``deferrable``, ``reroutable``, ``allowed_zones``, ``requires``, ``team``, ``owner``, ``cluster``,
            ``model_id``, ``tao_tags``, ``size``; ``off=True`` leaves the task alone.

    Raises:
        InputError: an option is unknown or malformed, or it is no task.
    """
    operator = _operator_of(task)
    try:
        config = merged_config(operator.executor_config, options)
    except InputError as error:
        # Here, and not where it was found: of the traceback Airflow shows the last calls only.
        raise InputError(error.code, f"task {operator.task_id!r}: {error.summary}", error.remedy) from None
    set_config(operator, config)
    return task


class TaoOperator:
    """Makes an operator of another class, with options of ours among its arguments.

    ``TaoOperator(operator_class=BashOperator, task_id="a", bash_command="...", budget="team-a")`` is a ``BashOperator``.
    An argument that the operator itself knows is the operator's, such as ``owner``, and ``deferrable`` of those that
    have it; ``tao(...)`` tells ours apart.

    Raises:
        InputError: an option of ours is malformed.
    """

    def __new__(cls, *, operator_class: type[Operator], **arguments: Any) -> Operator:  # type: ignore[misc]
        """The operator."""
        return operator_class(**with_ours(operator_class, arguments))

    @staticmethod
    def partial(*, operator_class: Any, **arguments: Any) -> Any:
        """As the operator's own ``partial``, to be followed by ``expand``.

        Raises:
            InputError: an option of ours is malformed.
        """
        return operator_class.partial(**with_ours(operator_class, arguments))


def with_ours(operator_class: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for an operator of a class: options of ours among them are in its ``executor_config``.

    Raises:
        InputError: an option of ours is malformed.
    """
    ours = {name: value for name, value in arguments.items() if name in NAMES and not _takes(operator_class, name)}
    rest = {name: value for name, value in arguments.items() if name not in ours}
    if not ours:
        return rest
    try:
        return {**rest, "executor_config": merged_config(rest.get("executor_config"), ours)}
    except InputError as error:
        where = f"task {rest['task_id']!r}: " if "task_id" in rest else ""
        raise InputError(error.code, where + error.summary, error.remedy) from None


def _takes(operator_class: type, name: str) -> bool:
    makers = (vars(each)["__init__"] for each in operator_class.__mro__ if "__init__" in vars(each))
    return any(name in inspect.signature(maker).parameters for maker in makers)


def _operator_of(task: Any) -> Any:
    operator = getattr(task, "operator", None)
    found = task if operator is None or isinstance(operator, str) else operator
    if not hasattr(found, "executor_config") or not hasattr(found, "task_id"):
        remedy = "give it an operator, or what calling a @task function returned"
        raise InputError("NO_TASK", f"{task!r} is no task", remedy)
    return found
