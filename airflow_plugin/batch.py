"""``@task.tao_batch``: mapping over many small items in few task instances.

``f.expand(x=...)`` makes a task group of three: ``plan`` divides the items into batches, ``run`` is mapped over those,
and ``collect`` has the results, one after another in the order of the items, as Airflow's own ``expand`` gives them: an
item that returns None, or skips, is not among them.

An item that fails does not stop the others of its batch; then the try fails with an error that names it. What has
finished is kept for the next try beside the XComs of ``plan``, where Airflow does not clear it when the try begins.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

from airflow.providers.standard.decorators.python import python_task
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import TaskGroup, XComArg
from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from airflow_plugin.batch_run import ITEMS_KEY, BatchItemsFailed, collect, plan, runner
from airflow_plugin.operators import with_ours
from airflow_plugin.options import merged_config
from tao_flows.errors import InputError

if TYPE_CHECKING:
    from airflow.sdk.types import Operator

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["ITEMS_KEY", "BatchItemsFailed", "TaoBatch", "tao_batch"]

_MOST_ITEMS: Final = 100_000


class _BatchOperator(DecoratedOperator, PythonOperator):  # type: ignore[misc]
    """Runs one batch. What it costs is learned by how many items there are."""

    template_fields: Sequence[str] = ("templates_dict", "op_args", "op_kwargs")
    template_fields_renderers: Mapping[str, str] = {"templates_dict": "json", "op_args": "py", "op_kwargs": "py"}
    custom_operator_name: str = "@task.tao_batch"

    def __init__(self, *, python_callable: Any, op_args: Any, op_kwargs: Any, **arguments: Any) -> None:
        upstream = {"python_callable": python_callable, "op_args": op_args, "op_kwargs": op_kwargs}
        super().__init__(kwargs_to_upstream=upstream, **upstream, **arguments)
        batch = op_kwargs.get("tao_batch")
        if isinstance(batch, Mapping):
            self.executor_config: dict[str, Any] = merged_config(self.executor_config, {"size": len(batch["items"])})


class _Result(PlainXComArg):  # type: ignore[misc]
    """The results, to be passed on. What is set to run before them runs before the plan."""

    _tao_first: Operator

    @property
    def roots(self) -> list[Operator]:
        return [self._tao_first]

    def set_upstream(self, task_or_task_list: Any, edge_modifier: Any = None) -> None:
        self._tao_first.set_upstream(task_or_task_list, edge_modifier)


class TaoBatch(Generic[P, R]):
    """A function that is to be mapped in batches. Made by ``tao_batch``, never by hand.

    Args:
        function: the user's.
        size: items in a task; None: from what items and tasks were measured to cost.
        arguments: of the task that runs them.
        fixed: what every item is given.
    """

    def __init__(
        self,
        function: Callable[P, R],
        size: int | None,
        arguments: Mapping[str, Any],
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self.function, self.size, self.arguments, self.fixed = function, size, dict(arguments), dict(fixed or {})

    def override(self, **changes: Any) -> TaoBatch[P, R]:
        """The same with other arguments, such as ``task_id``."""
        size = changes.pop("items_per_task", self.size)
        return TaoBatch(self.function, _checked_size(size), {**self.arguments, **changes}, self.fixed)

    def partial(self, **fixed: Any) -> TaoBatch[P, R]:
        """The same with some arguments given, for every item the same.

        Raises:
            TypeError: the function has no such argument.
        """
        self._check(fixed)
        return TaoBatch(self.function, self.size, self.arguments, {**self.fixed, **fixed})

    def expand(self, **mapped: Any) -> XComArg:
        """An item for each combination of values; their results in order.

        Raises:
            TypeError: the function has no such argument, or nothing is mapped.
        """
        if not mapped:
            raise TypeError("no arguments to expand against")
        self._check(mapped)
        return self._group(mapped)

    def expand_kwargs(self, mapped: Any) -> XComArg:
        """An item for each dict of arguments; their results in order."""
        return self._group(mapped)

    def _check(self, names: Mapping[str, Any]) -> None:
        if taken := names.keys() & self.fixed.keys():
            raise TypeError(f"mapping already partial argument: {', '.join(sorted(taken))}")
        inspect.signature(self.function).bind_partial(**names)

    def _group(self, mapped: Any) -> XComArg:
        arguments = {**self.arguments}
        task_id = arguments.pop("task_id", self.function.__name__)
        first = {"trigger_rule": arguments.pop("trigger_rule")} if "trigger_rule" in arguments else {}
        with TaskGroup(task_id, add_suffix_on_collision=True, tooltip=self.function.__doc__ or "") as group:
            run_id = group.child_id("run")
            planned = python_task(python_callable=plan, multiple_outputs=False, task_id="plan", **first)(
                mapped=mapped, size=self.size, run_id_of=run_id
            )
            run = task_decorator_factory(
                python_callable=runner(self.function, planned.operator.task_id),
                multiple_outputs=False,
                decorated_operator_class=_BatchOperator,
                task_id="run",
                **with_ours(_BatchOperator, arguments),
            )
            ran = run.partial(**self.fixed).expand(tao_batch=planned)
            collected = python_task(python_callable=collect, multiple_outputs=False, task_id="collect")(ran)
        result = _Result(collected.operator)
        result._tao_first = planned.operator  # noqa: SLF001 - a class of ours
        return result


@overload
def tao_batch(function: Callable[P, R], /, **arguments: Any) -> TaoBatch[P, R]: ...
@overload
def tao_batch(
    function: None = None, /, *, items_per_task: int | None = None, **arguments: Any
) -> Callable[[Callable[P, R]], TaoBatch[P, R]]: ...
def tao_batch(function: Any = None, /, *, items_per_task: int | None = None, **arguments: Any) -> Any:
    """Has a function mapped over many items in few task instances: ``tao_batch(f, items_per_task=50).expand(x=[...])``.

    Args:
        function: a plain function; what ``@task`` would give it of the context it is given here, too.
        items_per_task: how many items share a task instance; None: as many as keep the engine's joules at a tenth of
            the whole, by what both were measured to be in earlier runs, and ``UNKNOWN_ITEMS`` until there are any.
        arguments: those of ``@task``, for the task that runs them (``trigger_rule`` for the plan, and ``task_id`` for
            the group); and options as ``tao`` takes them.

    Raises:
        InputError: an option is malformed, or it is not a plain function.
    """
    size = _checked_size(items_per_task)
    with_ours(_BatchOperator, arguments)
    if function is None:
        return functools.partial(tao_batch, items_per_task=size, **arguments)
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if not inspect.isfunction(function) or any(is_kind(function) for is_kind in kinds):
        remedy = "give it a function that is neither async nor a generator, and no task"
        raise InputError("NOT_BATCHABLE", f"{function!r} is no plain function", remedy)
    return TaoBatch(function, size, arguments)


def _checked_size(size: object) -> int | None:
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _MOST_ITEMS):
        return size
    summary = f"items_per_task: {size!r} is not a whole number from 1 to {_MOST_ITEMS}"
    raise InputError("BAD_OPTION", summary, "write items_per_task=50, or leave it out")
