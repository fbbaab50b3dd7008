"""The futures of items that share a task run."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from tao_flows.batching import shares
from tao_flows.figures import Figure
from tao_flows.prefect._compat import (
    Completed,
    Crashed,
    Pending,
    PrefectFuture,
    PrefectTaskRunFuture,
    State,
    raise_if_flow_run_suspension_requested,
    result_record,
)
from tao_flows.prefect.batch_items import Outcome
from tao_flows.records import TaskRecord

R = TypeVar("R")


class Delivery:
    """What the items of one batch come to, once it has ended.

    Args:
        is_part: whether it is a part of another one, which hands its outcomes on.
    """

    def __init__(self, *, is_part: bool = False) -> None:
        self.is_part = is_part
        self.over: concurrent.futures.Future[Mapping[int, Outcome]] = concurrent.futures.Future()
        self._submitted: concurrent.futures.Future[UUID] = concurrent.futures.Future()
        self.task_runs: list[PrefectFuture[Any]] = []
        """The batch's."""

    @property
    def task_run_id(self) -> UUID:
        """The batch's. Where its items wait for others before it is submitted, this waits, too."""
        return self._submitted.result()

    def submitted(self, task_run: PrefectFuture[Any]) -> None:
        """The batch, or what was left of it, was handed to the task runner."""
        self.task_runs.append(task_run)
        if not self._submitted.done():
            self._submitted.set_result(task_run.task_run_id)

    def never(self, error: BaseException) -> None:
        """The batch could not be handed to the task runner."""
        if not self._submitted.done():
            self._submitted.set_exception(error)
        self.over.set_exception(error)

    def outcome(self, number: int, timeout_s: float | None = None) -> Outcome:
        """That of an item, once there is one.

        Raises:
            concurrent.futures.TimeoutError: there is none in time.
        """
        try:
            return self.over.result(timeout_s)[number]
        except concurrent.futures.TimeoutError:
            if not self.over.done():
                raise
            return Outcome(raised=self.over.exception())
        except BaseException as error:
            if not self.over.done():  # not the batch's, but this thread's
                raise
            return Outcome(raised=error)

    def energies(self, records: Sequence[TaskRecord]) -> dict[int, Figure]:
        """The joules of each item, from the records of the task runs that ran them."""
        outcomes = self.over.result() if self.over.done() and self.over.exception() is None else {}
        figures = shares([{outcome.ran_by: outcome.cpu_s} for outcome in outcomes.values()], records)
        return dict(zip(outcomes, figures, strict=True))


class ItemFuture(PrefectTaskRunFuture[R]):
    """The future of one item: a task run's, but for the task run, which is its batch's."""

    def __init__(self, delivery: Delivery, number: int) -> None:
        self.delivery, self.number = delivery, number
        self._state: State[R] | None = None

    @property
    def task_run_id(self) -> UUID:
        """The batch's."""
        return self.delivery.task_run_id

    @property
    def _final_state(self) -> State[R] | None:  # type: ignore[override] # Prefect sets it, too
        if self._state is None and self.delivery.over.done():
            task_runs = self.delivery.task_runs
            task_run_id = task_runs[-1].task_run_id if task_runs else None
            self._state = _state_of(self.delivery.outcome(self.number), task_run_id)
        return self._state

    @property
    def state(self) -> State[R]:
        """The item's once its batch has ended; until then the batch's."""
        if (final := self._final_state) is not None:
            return final
        task_runs = self.delivery.task_runs
        return task_runs[-1].state if task_runs else Pending()

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the batch to end, for so many seconds at the most."""
        try:
            outcome = self.delivery.outcome(self.number, timeout)
        except concurrent.futures.TimeoutError:
            raise_if_flow_run_suspension_requested()
            return
        raise_if_flow_run_suspension_requested()
        if outcome.raised is not None:
            raise outcome.raised

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """What the item's function returned.

        Raises:
            TimeoutError: the batch has not ended within so many seconds.
            Exception: what the item raised, unless ``raise_on_failure`` is False: then it is returned.
        """
        try:
            outcome = self.delivery.outcome(self.number, timeout)
        except concurrent.futures.TimeoutError as error:
            raise_if_flow_run_suspension_requested()
            said = f"Task run {self.task_run_id} did not complete within {timeout} seconds"
            raise TimeoutError(said) from error
        raise_if_flow_run_suspension_requested()
        if outcome.raised is not None:
            raise outcome.raised
        if outcome.state is None:
            return outcome.value
        return outcome.state.result(raise_on_failure=raise_on_failure, _sync=True)  # type: ignore[call-overload]

    def add_done_callback(self, fn: Callable[[PrefectFuture[R]], None]) -> None:
        """Calls ``fn`` with this future once its batch has ended."""
        self.delivery.over.add_done_callback(lambda _: fn(self))

    @property
    def ran_by(self) -> str:
        """The task run that ran the item: another one than the batch's where that handed it back, or died."""
        return self.delivery.outcome(self.number).ran_by[0]

    def energy_in(self, records: Sequence[TaskRecord]) -> Figure:
        """The item's share of its batch's joules.

        Args:
            records: those of the flow run's tasks.
        """
        return self.delivery.energies(records).get(self.number, Figure.unknown("batch"))

    def __reduce__(self) -> Any:
        # It travels to a Dask worker as what it has come to.
        return _ended, (self.task_run_id, self.number, self.delivery.outcome(self.number))


class _TaskRun(PrefectTaskRunFuture[Any]):
    """Names the task run of a future that has travelled."""

    def wait(self, timeout: float | None = None) -> None:
        """Nothing is waited for."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """Nothing."""

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        """It is done."""
        fn(self)


def _ended(task_run_id: UUID, number: int, outcome: Outcome) -> ItemFuture[Any]:
    delivery = Delivery()
    delivery.submitted(_TaskRun(task_run_id))
    delivery.over.set_result({number: outcome})
    return ItemFuture(delivery, number)


def _state_of(outcome: Outcome, task_run_id: UUID | None) -> State[Any]:
    state: State[Any]
    if outcome.state is not None:
        state = outcome.state
    elif outcome.raised is not None:
        said = (
            f"Execution was interrupted by an unexpected exception: {type(outcome.raised).__name__}: {outcome.raised}"
        )
        state = Crashed(message=said, data=outcome.raised)
    else:
        state = Completed(data=result_record().model_copy(update={"result": outcome.value}))
    state.state_details.task_run_id = task_run_id
    return state
