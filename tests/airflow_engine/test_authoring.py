from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from parsing import Parsed, parse

from tao_flows.options import make_options

pytestmark = pytest.mark.airflow

HEAD = """
from datetime import timedelta
from airflow.sdk import DAG, TaskGroup, task
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow_plugin.decorators import tao_task
from airflow_plugin.operators import TaoOperator, tao
from tao_flows.budget import EnergyBudget
from tao_flows.deadline import Deadline

"""
PLAIN = """
with DAG("dag"):
    BashOperator(task_id="a", bash_command="true", executor_config={"KubernetesExecutor": {"image": "x"}})
    BashOperator.partial(task_id="m").expand(bash_command=["true"])
    @task
    def f(x): return x
    f.expand(x=[1, 2])
"""


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Parsed]:
    from airflow_plugin import options

    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(tmp_path / "ledger.db"))
    options._settings.cache_clear()
    yield lambda source: parse(tmp_path, HEAD + source)
    options._settings.cache_clear()


def test_a_dag_that_asks_for_nothing_stays_as_it_is(parsed):
    dag = parsed(PLAIN)
    assert dag.errors == {}
    assert dag.config("a") == {"KubernetesExecutor": {"image": "x"}}
    assert dag.config("m") == dag.config("f") == {}


def test_options_reach_the_scheduler_beside_what_the_author_has_there(parsed):
    dag = parsed("""
with DAG("dag"):
    config = {"pod_override": None}
    tao(BashOperator(task_id="a", bash_command="true", executor_config=config), budget="40 J", deferrable=True,
        deadline=timedelta(hours=2), max_defer="1h", allowed_zones=("DE",), requires={"gpu"}, size=7, team="ml",
        owner="ada", model_id="m", tao_tags=["x"])
    BashOperator(task_id="shares_it", bash_command="true", executor_config=config)
""")
    assert dag.errors == {}
    assert dag.config("a") == {
        "pod_override": None,
        "tao_flows": {
            "budget": "40 J", "deferrable": True, "deadline": 7200.0, "max_defer": "1h", "allowed_zones": ["DE"],
            "requires": ["gpu"], "size": 7, "team": "ml", "owner": "ada", "model_id": "m", "tao_tags": ["x"],
        },
    }  # fmt: skip
    assert dag.config("shares_it") == {"pod_override": None}


@pytest.mark.parametrize(
    "written",
    [
        'deadline=Deadline.parse("by 06:00 Europe/Berlin after data_interval_end")',
        'deadline=Deadline.parse("12345678s after run_start")',
        "deadline=Deadline.parse(90)",
        'budget=EnergyBudget("own", 5.0, 60.0, 7.5, scope="team:a")',
        'budget=EnergyBudget("calendar", 5.0, calendar="day", timezone="Europe/Berlin")',
        'budget={"limit": "1 kWh", "window": "2d"}',
        'budget={"power": "500 W"}',
    ],
)
def test_what_is_no_json_means_the_same_after_it_was_stored(parsed, written):
    dag = parsed(f"""
with DAG("dag"):
    tao(BashOperator(task_id="a", bash_command="true"), {written})
""")
    import tao_flows.budget
    import tao_flows.deadline

    names = {"Deadline": tao_flows.deadline.Deadline, "EnergyBudget": tao_flows.budget.EnergyBudget}
    meant = eval(f"dict({written})", names)
    assert dag.errors == {}
    assert make_options(**dag.config("a")["tao_flows"]) == make_options(**meant)


def test_every_kind_of_task_takes_options_and_is_returned_as_it_was(parsed):
    dag = parsed("""
with DAG("dag"):
    mapped = BashOperator.partial(task_id="m").expand(bash_command=["true"])
    assert tao(mapped, size=1) is mapped
    @task
    def f(x): return x
    called = f(1)
    assert tao(called, size=2) is called
    many = f.override(task_id="g").expand(x=called)
    assert tao(many, size=3) is many
    made = TaoOperator(operator_class=BashOperator, task_id="b", bash_command="true", size=4)
    assert type(made) is BashOperator
    TaoOperator.partial(operator_class=BashOperator, task_id="p", size=5).expand(bash_command=["true"])
    @task.tao(size=6, retries=3)
    def h(x): return x
    h(called)
    h.override(task_id="i").expand(x=[1, 2])
    @task.tao
    def bare(): return 1
    bare()
    @task.tao(size=7)
    @task.bash(env={"A": "b"})
    def shell(): return "true"
    shell()
    @tao_task(budget="team-a")
    def imported(): return 1
    imported()
""")
    assert dag.errors == {}
    sizes = {name: dag.config(name).get("tao_flows", {}).get("size") for name in dag.dags["dag"].task_ids}
    assert sizes == {
        "m": 1, "f": 2, "g": 3, "b": 4, "p": 5, "h": 6, "i": 6, "bare": None, "shell": 7, "imported": None,
    }  # fmt: skip
    assert dag.config("imported") == {"tao_flows": {"budget": "team-a"}}
    assert dag.dags["dag"].get_task("h").retries == 3
    assert dag.dags["dag"].get_task("shell").task_type == "_BashDecoratedOperator"


def test_the_nearest_wins_option_by_option(parsed):
    dag = parsed("""
with DAG("dag", tags=["tao:deadline=9h", "tao:budget=tag", "tao:team=tag", "tao:off"],
         default_args={"tao": {"deadline": "8h", "budget": "dag"}, "retries": 2}):
    BashOperator(task_id="a", bash_command="true")
    with TaskGroup("outer", default_args={"tao": {"budget": "outer", "size": 1}}):
        with TaskGroup("inner", default_args={"tao": {"size": 2, "off": False}}):
            tao(BashOperator(task_id="b", bash_command="true"), deadline="1h")
            @task.tao(deadline="2h")
            def c(x): return x
            tao(c.expand(x=[1]), deadline="3h", off=True)
""")
    assert dag.errors == {}
    assert dag.config("a")["tao_flows"] == {"deadline": "8h", "budget": "dag", "team": "tag", "off": True}
    inner = {"budget": "outer", "team": "tag", "size": 2}
    assert dag.config("outer.inner.b")["tao_flows"] == {**inner, "deadline": "1h", "off": False}
    assert dag.config("outer.inner.c")["tao_flows"] == {**inner, "deadline": "3h", "off": True}
    assert dag.dags["dag"].get_task("a").retries == 2


def test_tags_say_every_kind_of_option(parsed):
    dag = parsed("""
with DAG("dag", tags=["tao:deferrable", "tao:reroutable=false", "tao:max-defer = 1h", "tao:allowed_zones=DE, FR",
                      "tao:size=10", "tao:budget=40 J", "team:of-another-meaning"]):
    BashOperator(task_id="a", bash_command="true")
""")
    assert dag.config("a")["tao_flows"] == {
        "deferrable": True, "reroutable": False, "max_defer": "1h", "allowed_zones": ["DE", "FR"], "size": 10.0,
        "budget": "40 J",
    }  # fmt: skip


def test_an_executor_that_passes_all_it_finds_on_finds_nothing_of_ours_and_the_worker_does(tmp_path, monkeypatch):
    from airflow_plugin import places

    path = "airflow.providers.amazon.aws.executors.ecs.ecs_executor.AwsEcsExecutor"
    monkeypatch.setattr("airflow_plugin.options.executors", lambda: places.parse_executors(path))
    source = (
        HEAD
        + """
with DAG("dag", tags=["tao:size=1"]):
    tao(BashOperator(task_id="a", bash_command="true", executor_config={"overrides": {}}), deferrable=True)
"""
    )
    assert parse(tmp_path, source).config("a") == {"overrides": {}}
    options = {"size": 1.0, "deferrable": True}
    assert parse(tmp_path, source, for_task="a").config("a") == {"overrides": {}, "tao_flows": options}


def test_an_argument_that_the_operator_knows_is_the_operators(parsed):
    dag = parsed("""
with DAG("dag"):
    made = TaoOperator(operator_class=TriggerDagRunOperator, task_id="a", trigger_dag_id="b", deferrable=True,
                       owner="ada", budget="team-a")
    assert (made.deferrable, made.owner) == (True, "ada")
""")
    assert dag.errors == {}
    assert dag.config("a") == {"tao_flows": {"budget": "team-a"}}


MISTAKES = {
    'tao(BashOperator(task_id="a", bash_command="true"), deadline="soon")':
        "BAD_DURATION: task 'a': deadline: 'soon' is not a duration (",
    'tao(BashOperator(task_id="a", bash_command="true"), budget="-5 J")':
        "BAD_ENERGY: task 'a': budget 'of the task': limit: '-5 J' is not an energy (",
    'tao(BashOperator(task_id="a", bash_command="true"), budget=-5)': "BAD_ENERGY: task 'a': budget",
    'tao(BashOperator(task_id="a", bash_command="true"), deadlin="2h")':
        "UNKNOWN_OPTION: task 'a': unknown option 'deadlin' (did you mean 'deadline'?)",
    'tao(BashOperator(task_id="a", bash_command="true"), off="yes")': "BAD_OPTION: task 'a': off: 'yes' is not True or",
    'TaoOperator(operator_class=BashOperator, task_id="a", bash_command="true", max_defer=-1)':
        "BAD_DURATION: task 'a': max_defer: -1",
    'task.tao(deferrable="yes")': "BAD_OPTION: deferrable: 'yes' is not True or False (",
    'tao("a", size=1)': "NO_TASK: 'a' is no task (",
    'BashOperator(task_id="a", bash_command="true", default_args={}, executor_config={"tao_flows": {"sise": 1}})':
        "AirflowClusterPolicyViolation: task 'a': UNKNOWN_OPTION: unknown option 'sise' (did you mean 'size'?)",
}  # fmt: skip


@pytest.mark.parametrize("written", MISTAKES)
def test_a_mistake_is_one_clear_line_among_the_import_errors(parsed, written):
    dag = parsed(f"""
with DAG("dag"):
    {written}
""")
    assert dag.dags == {}
    assert MISTAKES[written] in dag.error


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('tags=["tao:deadline=soon"]', "task 'a': BAD_DURATION: tag 'tao:deadline=soon': deadline: 'soon' is not a"),
        ('tags=["tao:deadlin=2h"]', "UNKNOWN_OPTION: tag 'tao:deadlin=2h': unknown option 'deadlin' (did you mean"),
        ('tags=["tao:budget"]', "BAD_OPTION: tag 'tao:budget': it has no value (write tao:budget=...)"),
        ('tags=["tao:off=perhaps"]', "BAD_OPTION: tag 'tao:off=perhaps': off: 'perhaps' is not True or False"),
        ('tags=["tao:size=big"]', "BAD_OPTION: tag 'tao:size=big': size: 'big' is not a number"),
        ('default_args={"tao": "off"}', "BAD_OPTION: default_args['tao']: 'off' is not a dict"),
        ('default_args={"tao": {"budget": "-1 kWh"}}', "BAD_ENERGY: default_args['tao']: budget"),
    ],
)
def test_a_mistake_for_the_whole_dag_says_where_it_is_written(parsed, given, told):
    dag = parsed(f"""
with DAG("dag", {given}):
    BashOperator(task_id="a", bash_command="true")
""")
    assert dag.dags == {}
    assert dag.error.startswith("AirflowClusterPolicyViolation: task 'a': ")
    assert told in dag.error


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pools.toml"
    file.write_text("""
[[pools]]
pool_id = "normal"
zone = "DE"
[[pools]]
pool_id = "green"
zone = "SE"
capabilities = ["gpu"]
""")
    monkeypatch.setenv("TAO_FLOWS_POOLS", str(file))


PLACES = {
    'allowed_zones=["DK"]': "UNKNOWN_ZONE: zone 'DK': no pool that is described has it (known: DE, SE)",
    'requires=["gpus"]': "UNKNOWN_CAPABILITY: capability 'gpus': no pool that is described has it (did you mean 'gpu'?)",
    "reroutable=True": "UNKNOWN_POOL: pool 'grene': no pool that is described has it (did you mean 'green'?)",
}


def placed(options: str, queue: str) -> str:
    return f"""
with DAG("dag"):
    tao(BashOperator(task_id="a", bash_command="true", queue={queue!r}), {options})
"""


@pytest.fixture
def with_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_plugin import places

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    places.executors.cache_clear()
    yield
    monkeypatch.delenv("AIRFLOW__CORE__EXECUTOR")
    places.executors.cache_clear()


@pytest.mark.parametrize("options", PLACES)
def test_a_place_that_nobody_described_is_an_import_error_where_places_are_described(
    parsed, pools, with_queues, options
):
    dag = parsed(placed(options, "grene"))
    assert dag.error.endswith(PLACES[options])
    assert parsed(placed('allowed_zones=["SE"], requires=["gpu"], reroutable=True', "green")).errors == {}


def test_places_are_checked_only_where_there_are_any_and_where_the_author_asks(parsed, with_queues):
    assert parsed(placed('allowed_zones=["DK"], requires=["gpus"], reroutable=True', "grene")).errors == {}


def test_a_queue_without_a_description_serves_tasks_that_are_not_decided_on(parsed, pools, with_queues):
    assert parsed(placed("size=1", "grene")).errors == {}
    assert parsed(placed("reroutable=True", "default")).errors == {}


def test_a_pool_that_only_the_ledger_describes_is_known(parsed, pools, with_queues, tmp_path):
    from tao_flows.ledger import open_ledger
    from tao_flows.ledger.pools import PoolStore
    from tao_flows.pools import WorkerPool

    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    PoolStore(ledger).put(WorkerPool("blue", zone="DK"))
    ledger.close()
    assert parsed(placed('allowed_zones=["DK"], reroutable=True', "blue")).errors == {}


def test_what_was_let_pass_is_never_refused_in_a_tasks_own_process(tmp_path, pools, with_queues):
    mistaken = 'with DAG("dag", tags=["tao:nonsense"]):\n    BashOperator(task_id="a", bash_command="true")'
    assert parse(tmp_path, HEAD + mistaken, for_task="a").errors == {}
    assert parse(tmp_path, HEAD + placed('allowed_zones=["DK"]', "green"), for_task="a").errors == {}
