"""DAGs whose tasks say where they ran: the queue that their Celery worker reads, or local."""

from __future__ import annotations

import os
import re
import time
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, task

LOCAL = "airflow_plugin.executor.TaoLocalExecutor"
MOVES = {"tao_flows": {"reroutable": True}}
CHARGED = {"tao_flows": {"reroutable": True, "budget": "many"}}
WAITS = {"tao_flows": {"deferrable": True, "max_defer": "10m", "deadline": "60s"}}


def worker() -> str:
    """The queue after which the worker is named from which this process descends."""
    pid = os.getpid()
    while pid > 1:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        if named := re.search(r"celeryd: (\w+)@", title):
            return named[1]
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return "local"


class DefersItself(BaseOperator):
    """Says where it began, where it came back, and with what."""

    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=6)), method_name="again", kwargs={"began": worker()})

    def again(self, context, event, began):
        return [began, worker(), str(event)]


with DAG("moves", schedule=None):

    @task(queue="normal", retries=1, retry_delay=timedelta(seconds=1), executor_config=MOVES)
    def fails_first(ti=None):
        here = Path(os.environ["AIRFLOW_HOME"], f"try-{ti.try_number}-of-{ti.run_id.replace(':', '')}")
        here.write_text(worker())
        if ti.try_number == 1:
            while not here.with_suffix(".flipped").exists():
                time.sleep(0.1)
            raise ValueError("as was to be")

    fails_first()

with DAG("resumes", schedule=None):
    DefersItself(task_id="defers_itself", queue="normal", executor_config=MOVES)

with DAG("leaves", schedule=None):

    @task(queue="normal", executor_config=MOVES)
    def from_celery():
        return worker()

    @task(executor=LOCAL, executor_config=MOVES)
    def from_local():
        return worker()

    from_celery()
    from_local()

with DAG("hurries", schedule=None):

    @task(queue="normal", executor_config=WAITS)
    def promised():
        return time.time()

    promised()

with DAG("many", schedule=None):

    @task(queue="normal", retries=2, retry_delay=timedelta(seconds=1), executor_config=CHARGED)
    def one(number: int):
        time.sleep(2)
        return number

    one.expand(number=list(range(12)))

with DAG("patient", schedule=None):

    @task(queue="normal", executor_config={"tao_flows": {"deferrable": True, "max_defer": "10m"}})
    def waits(number: int):
        return number

    waits.expand(number=[0, 1, 2])
