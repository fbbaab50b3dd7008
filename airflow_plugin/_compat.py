"""What differs between Airflow 3.0.6 and 3.3, and every touch of what Airflow does not promise to keep.

Imports are inside the functions: a process that does not call them does not pay for them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any


def hook_base() -> type[Any]:
    """The class that hooks derive from: in the SDK since 3.1."""
    try:
        from airflow.sdk.bases.hook import BaseHook
    except ImportError:
        from airflow.hooks.base import BaseHook
    return BaseHook  # type: ignore[no-any-return]


def setting(section: str, option: str) -> str:
    """What Airflow's configuration sets of a provider's option; empty for nothing.

    Before 3.2 its ``_CMD`` and ``_SECRET`` forms count only once all providers have been asked for their options, which
    not every process of Airflow's does.
    """
    from airflow.configuration import conf

    value = conf.get(section, option, fallback=None)
    if value is None and any(conf.has_option(section, option + form) for form in ("_cmd", "_secret")):
        from airflow.providers_manager import ProvidersManager

        ProvidersManager().initialize_providers_configuration()
        value = conf.get(section, option, fallback=None)
    return str(value or "").strip()


def supervisor_channel() -> Any:
    """The channel of a task, a triggerer or a DAG's parser to its supervisor; None in every other process."""
    return getattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS", None)


def channel_is_shared(channel: Any) -> bool:
    """Whether threads may ask the supervisor at once: from 3.2 on."""
    return hasattr(channel, "_thread_lock")


def may_ask_supervisor(channel: Any) -> bool:
    """Whether this thread may ask the supervisor something and wait for the answer.

    Before 3.2 the channel is the main thread's, whose answer another thread's question could take. A triggerer's is its
    event loop's, which a worker thread of asgiref finds its way back to.
    """
    if threading.current_thread() is threading.main_thread():
        loops = sys.modules.get("asyncio.events")
        return loops is None or loops._get_running_loop() is None  # noqa: SLF001 - it does not raise
    asgiref = sys.modules.get("asgiref.sync")
    found_back = asgiref is not None and getattr(asgiref.SyncToAsync.threadlocal, "main_event_loop", None) is not None
    return found_back or channel_is_shared(channel)


def connection(name: str) -> Any:
    """Airflow's connection of that name: from its secrets backends, and the supervisor or else the database.

    Raises:
        Exception: there is none, or it cannot be had.
    """
    if supervisor_channel() is not None:
        from airflow.sdk import Connection

        return Connection.get(name)
    from airflow.models.connection import Connection as Stored

    return Stored.get_connection_from_secrets(name)


def dag_details(dag_id: str) -> Any:
    """A DAG, as auth managers are asked about it: with its team, which there are since 3.1."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
    from airflow.models.dag import DagModel

    if not hasattr(DagModel, "get_team_name"):
        return DagDetails(id=dag_id)
    return DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))


def pages_know_the_reader() -> bool:
    """Whether a browser that opens a page says who asks: on 3.0 the UI takes the cookie away and keeps the token."""
    from airflow.api_fastapi.core_api import security

    return hasattr(security, "resolve_user_from_token")


def task_deferred() -> Any:
    """What a task raises to be deferred: in the SDK since 3.2."""
    try:
        from airflow.sdk.exceptions import TaskDeferred
    except ImportError:
        from airflow.exceptions import TaskDeferred
    return TaskDeferred


def next_method(ti: Any) -> tuple[str, Any]:
    """The method by which a try comes back from a deferral, empty where it begins, and its arguments as sent."""
    context = getattr(ti, "_ti_context_from_server", None)
    return getattr(context, "next_method", None) or "", getattr(context, "next_kwargs", None)


def reschedules(ti: Any) -> int:
    """How often a try has given its slot away to look again later."""
    return getattr(getattr(ti, "_ti_context_from_server", None), "task_reschedule_count", 0) or 0


def next_arguments(sent: Any) -> Any:
    """The arguments of ``next_method`` as the task runner makes them of what was sent: by ``serde`` since 3.2."""
    from airflow.serialization.serialized_objects import BaseSerialization

    if not sent:
        return {}
    try:
        from airflow.sdk.serde import deserialize
    except ImportError:
        return BaseSerialization.deserialize(sent)
    try:
        return deserialize(sent)
    except (ImportError, KeyError, AttributeError, TypeError):  # written by an earlier version
        return BaseSerialization.deserialize(sent)


def alive_jobs() -> tuple[tuple[str, str], ...]:
    """The kind and host of every process of Airflow's that has sent its heartbeat, such as ``TriggererJob``.

    Raises:
        Exception: Airflow's database cannot be read.
    """
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session(scoped=False) as session:
        jobs = session.scalars(select(Job).where(Job.state == "running")).all()
        return tuple((job.job_type, job.hostname or "") for job in jobs if job.is_alive())


def plugin_errors() -> dict[str, str]:
    """By file or entry point, why a plugin could not be loaded."""
    from airflow import plugins_manager

    if hasattr(plugins_manager, "get_import_errors"):  # from 3.2 on
        return dict(plugins_manager.get_import_errors())
    plugins_manager.ensure_plugins_loaded()
    return dict(plugins_manager.import_errors)


def takes_no_workloads(queue_workload: Any) -> bool:
    """Whether that method is 3.0's which refuses whatever it is given: providers of today leave it to later ones."""
    from airflow.executors.base_executor import BaseExecutor

    is_base = queue_workload.__func__ is BaseExecutor.queue_workload
    return is_base and not hasattr(BaseExecutor, "_process_workloads")


def queued_rows(session: Any, ids: Sequence[Any]) -> list[Any]:
    """What the database has of task instances, a row each, with what it has of their runs and DAGs."""
    from airflow.models.dagrun import DagRun
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskreschedule import TaskReschedule
    from sqlalchemy import and_, func, select

    looks = select(func.count(TaskReschedule.id)).where(TaskReschedule.ti_id == TaskInstance.id).scalar_subquery()
    names = (
        "id dag_id run_id task_id map_index try_number state queue executor operator scheduled_dttm queued_dttm "
        "last_heartbeat_at next_method next_kwargs external_executor_id dag_version_id"
    )
    query = (
        select(
            *(getattr(TaskInstance, name) for name in names.split()),
            looks.label("looks"),
            SerializedDagModel.dag_hash,
            DagRun.id.label("dag_run"),
            DagRun.run_type,
            DagRun.start_date.label("run_start"),
            DagRun.queued_at,
            DagRun.data_interval_end,
        )
        .join(DagRun, and_(DagRun.dag_id == TaskInstance.dag_id, DagRun.run_id == TaskInstance.run_id))
        .outerjoin(SerializedDagModel, SerializedDagModel.dag_version_id == TaskInstance.dag_version_id)
        # Before 3.2 the column takes texts.
        .where(TaskInstance.id.in_(ids if type(TaskInstance.id.type).__name__ == "Uuid" else [str(i) for i in ids]))
    )
    return list(session.execute(query))


def serialized_dag(session: Any, dag_version_id: Any) -> Any:
    """The DAG of a version, without the links of its operators."""
    from airflow.models.serialized_dag import SerializedDagModel
    from sqlalchemy import select

    stored = session.scalar(select(SerializedDagModel).where(SerializedDagModel.dag_version_id == dag_version_id))
    stored.load_op_links = False
    return stored.dag


def deadline_alerts(session: Any, dag_runs: Iterable[int]) -> dict[int, datetime]:
    """By run, the first of its Deadline Alerts, whatever they refer to: there are some since 3.1."""
    from airflow.models.deadline import Deadline
    from sqlalchemy import func, select

    if not hasattr(Deadline, "deadline_time"):
        return {}
    first = select(Deadline.dagrun_id, func.min(Deadline.deadline_time))
    rows = session.execute(first.where(Deadline.dagrun_id.in_(set(dag_runs))).group_by(Deadline.dagrun_id))
    return dict(tuple(row) for row in rows)


def change_queued(session: Any, row: Any, **values: Any) -> bool:
    """Changes a task instance that is queued as it was when it was read; whether it still was."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import update

    same = (
        TaskInstance.id == row.id,
        TaskInstance.state == TaskInstanceState.QUEUED,
        TaskInstance.queued_dttm == row.queued_dttm,
    )
    done = session.execute(
        update(TaskInstance).where(*same).values(values).execution_options(synchronize_session=False)
    )
    return bool(done.rowcount == 1)


def defer_queued(session: Any, row: Any, trigger: Any, queue: str | None) -> bool:
    """Has a task instance that is queued wait for a trigger; whether it still was queued.

    The method by which it goes on, and its arguments, stay as they are. The trigger goes to the triggerers of ``queue``
    where those are told apart.
    """
    from airflow.configuration import conf
    from airflow.models.dag import DagModel
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import func

    stored = Trigger.from_object(trigger)
    if conf.getboolean("triggerer", "queues_enabled", fallback=False):
        stored.queue = queue
    if hasattr(Trigger, "team_name") and conf.getboolean("core", "multi_team", fallback=False):
        stored.team_name = DagModel.get_team_name(row.dag_id, session=session)
    session.add(stored)
    session.flush()
    return change_queued(
        session,
        row,
        state=TaskInstanceState.DEFERRED,
        trigger_id=stored.id,
        trigger_timeout=None,
        # Airflow's pages and durations count on what is deferred having begun.
        start_date=func.coalesce(TaskInstance.start_date, datetime.now(timezone.utc)),
    )


def event_of(next_kwargs: Any) -> Any:
    """What the author's own trigger has said, of the arguments with which a task instance is to go on."""
    try:
        from airflow.models.trigger import _decode_next_kwargs
    except ImportError:  # the column is decoded when it is read
        return (next_kwargs or {}).get("event")
    return _decode_next_kwargs(next_kwargs).get("event") if next_kwargs else None


def skip_exception() -> Any:
    """What a task raises to be skipped: in the SDK since 3.2."""
    try:
        from airflow.sdk.exceptions import AirflowSkipException
    except ImportError:
        from airflow.exceptions import AirflowSkipException
    return AirflowSkipException


def fail_exception() -> Any:
    """What a task raises not to be tried again: in the SDK since 3.2."""
    try:
        from airflow.sdk.exceptions import AirflowFailException
    except ImportError:
        from airflow.exceptions import AirflowFailException
    return AirflowFailException


def is_runtime_ti(ti: Any) -> bool:
    """Whether a task instance is one that runs here; listeners are given the database's rows of others, too."""
    return hasattr(type(ti), "get_template_context") and hasattr(ti, "_ti_context_from_server")


def run_of(ti: Any) -> Any:
    """What the API server told a running task of its DAG run; None where it told nothing."""
    return getattr(getattr(ti, "_ti_context_from_server", None), "dag_run", None)


def queue_of(ti: Any) -> str | None:
    """The queue that a running task was sent to: since 3.2 it is told, before that it is the author's."""
    told = getattr(ti, "queue", None) if "queue" in getattr(ti, "model_fields_set", ()) else None
    return told or getattr(ti.task, "queue", None)


def loaded(row: Any) -> dict[str, Any]:
    """What an object of Airflow's database holds in memory: to look at it asks the database nothing."""
    return dict(vars(row))


def dagrun_timeout(ti: Any) -> Any:
    """The time-out of a running task's DAG run, as its author gave it; None for none."""
    return getattr(getattr(ti.task, "dag", None), "dagrun_timeout", None)


def deferred_tasks(dag_id: str, run_id: str, task_ids: Collection[str]) -> set[tuple[str, int]]:
    """Of tasks of a run, the instances that are deferred, by task and map index: asked through the supervisor.

    Where there is none, as in tests, none is.

    Raises:
        Exception: the API server does not answer.
    """
    channel = supervisor_channel()
    if channel is None:
        return set()
    from airflow.sdk.execution_time.comms import GetTaskStates

    found: set[tuple[str, int]] = set()
    told = channel.send(GetTaskStates(dag_id=dag_id, run_ids=[run_id], task_ids=sorted(task_ids)))
    for name, state in told.task_states.get(run_id, {}).items():
        if str(getattr(state, "value", state)) != "deferred":
            continue
        # A mapped instance is told as TASK_INDEX, which another task may be called as well.
        task_id, _, index = name.rpartition("_")
        if task_id in task_ids and index.isdecimal():
            found.add((task_id, int(index)))
        if name in task_ids:
            found.add((name, -1))
    return found


def runs_under_way() -> set[tuple[str, str]]:
    """The DAG and run ids of all runs that have not ended. In a session of its own.

    Raises:
        Exception: the database cannot be read.
    """
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session(scoped=False) as session:
        query = select(DagRun.dag_id, DagRun.run_id).where(DagRun.state.in_(("queued", "running")))
        return {(row.dag_id, row.run_id) for row in session.execute(query)}


def change_note(dag_id: str, run_id: str, change: Callable[[str | None], str | None]) -> bool:
    """Changes a DAG run's note in a session of its own, unless a person changes it this moment; whether it is changed.

    Args:
        dag_id: the DAG's.
        run_id: the run's.
        change: the new note for the present one; None to leave it.

    Raises:
        Exception: the database cannot be written.
    """
    from airflow.models.dagrun import DagRun, DagRunNote
    from airflow.utils.session import create_session
    from sqlalchemy import select, update

    with create_session(scoped=False) as session:
        number = session.scalar(select(DagRun.id).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        if number is None:
            return False
        row = session.execute(select(DagRunNote.content).where(DagRunNote.dag_run_id == number)).one_or_none()
        before = None if row is None else row[0]
        after = change(before)
        if after is None:
            return False
        if row is None:
            note = DagRunNote(content=after)
            note.dag_run_id = number
            session.add(note)
            return True
        same = (DagRunNote.dag_run_id == number, DagRunNote.content == before)
        done = session.execute(update(DagRunNote).where(*same).values(content=after))
        return bool(done.rowcount == 1)
