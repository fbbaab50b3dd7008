from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.config import (
    SETTINGS,
    ConfigWatcher,
    EnergyBudget,
    env_name,
    load_config,
    mask_password,
    parse_settings,
)
from tao_flows.errors import ConfigError, InputError
from tao_flows.pools import WorkerPool, load_pools
from tao_flows.records import Who


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with nothing but a home directory."""
    return {"HOME": str(tmp_path / "home")}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def complaint(call, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_without_any_setting_the_defaults_hold(tmp_path, home):
    resolved = load_config(env=home, cwd=tmp_path)
    assert resolved.config.mode == "observe"
    assert resolved.config.ledger == f"sqlite:///{tmp_path}/home/.local/state/tao-flows/ledger.db"
    assert resolved.config.sources == ()
    assert resolved.config.powercap_root == Path("/sys/class/powercap")
    assert set(resolved.origins.values()) == {"default"}


def test_the_ledger_is_in_the_users_state_directory_unless_that_is_relative(tmp_path, home):
    state = str(tmp_path / "state")
    assert load_config(env=home | {"XDG_STATE_HOME": state}, cwd=tmp_path).config.ledger.startswith(
        f"sqlite:///{state}/"
    )
    relative = load_config(env=home | {"XDG_STATE_HOME": "state"}, cwd=tmp_path).config.ledger
    assert relative == load_config(env=home, cwd=tmp_path).config.ledger


def test_arguments_beat_the_environment_which_beats_the_engine_which_beats_the_file(tmp_path, home):
    path = write(tmp_path / "tao-flows.toml", 'team = "file"\n')
    layers = {
        "argument": {"arguments": {"team": "argument"}},
        "environment": {"env": home | {"TAO_FLOWS_TEAM": "environment"}},
        "airflow": {"engine": {"team": "airflow"}, "engine_name": "airflow"},
    }
    while layers:
        given_layers = {"env": home, "cwd": tmp_path} | {k: v for layer in layers.values() for k, v in layer.items()}
        resolved = load_config(**given_layers)
        highest = next(iter(layers))
        assert (resolved.config.team, resolved.origins["team"]) == (highest, highest)
        del layers[highest]
    resolved = load_config(env=home, cwd=tmp_path)
    assert (resolved.config.team, resolved.origins["team"]) == ("file", str(path))


@given(st.dictionaries(st.sampled_from(["argument", "environment", "engine", "file"]), st.text("abc", min_size=1)))
def test_a_setting_is_always_that_of_the_highest_place_which_has_it(tmp_path_factory, places):
    cwd = tmp_path_factory.mktemp("cwd")
    env = {"HOME": str(cwd)}
    if "file" in places:
        write(cwd / "tao-flows.toml", f'owner = "{places["file"]}"\n')
    if "environment" in places:
        env["TAO_FLOWS_OWNER"] = places["environment"]
    resolved = load_config(
        arguments={"owner": places.get("argument")}, env=env, engine={"owner": places.get("engine")}, cwd=cwd
    )
    order = [places[name] for name in ("argument", "environment", "engine", "file") if name in places]
    assert resolved.config.owner == (order[0] if order else "")


def test_the_file_is_the_named_one_then_the_local_one_then_the_users(tmp_path, home):
    users = write(tmp_path / "home/.config/tao-flows/config.toml", 'team = "users"\n')
    assert load_config(env=home, cwd=tmp_path).origins["team"] == str(users)
    local = write(tmp_path / "tao-flows.toml", 'team = "local"\n')
    assert load_config(env=home, cwd=tmp_path).origins["team"] == str(local)
    named = write(tmp_path / "named.toml", 'team = "named"\n')
    assert load_config(env=home | {"TAO_FLOWS_CONFIG": "named.toml"}, cwd=tmp_path).origins["team"] == str(named)


def test_values_are_read_in_the_forms_that_people_write(tmp_path, home):
    env = home | {
        "TAO_FLOWS_MODE": " Enforce ",
        "TAO_FLOWS_SOURCES": "rapl, nvml,",
        "TAO_FLOWS_LOG_LEVEL": "debug",
        "TAO_FLOWS_PROC_ROOT": "proc",
        "TAO_FLOWS_TEAM": "",
    }
    config = load_config(env=env, cwd=tmp_path, arguments={"tags": ["a", "b"], "team": None}).config
    assert config.mode == "enforce"
    assert config.sources == ("rapl", "nvml")
    assert config.log_level == "DEBUG"
    assert config.proc_root == tmp_path / "proc"
    assert config.who == Who(tags=("a", "b"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ledger.db", "sqlite:///{here}/ledger.db"),
        ("/var/ledger.db", "sqlite:////var/ledger.db"),
        ("sqlite:///ledger.db", "sqlite:///{here}/ledger.db"),
        ("sqlite:////var/ledger.db", "sqlite:////var/ledger.db"),
        ("postgresql://db/tao", "postgresql://db/tao"),
    ],
)
def test_a_ledger_is_a_url_or_a_path_and_a_path_is_made_absolute(tmp_path, home, written, meant):
    ledger = load_config(env=home, cwd=tmp_path, arguments={"ledger": written}).config.ledger
    assert ledger == meant.format(here=tmp_path)


def test_paths_in_a_file_are_relative_to_the_file(tmp_path, home):
    named = write(tmp_path / "etc/tao.toml", 'pools = "pools.toml"\nledger = "ledger.db"\n')
    config = load_config(env=home | {"TAO_FLOWS_CONFIG": str(named)}, cwd=tmp_path).config
    assert config.pools == tmp_path / "etc/pools.toml"
    assert config.ledger == f"sqlite:///{tmp_path}/etc/ledger.db"


def test_budgets_are_tables_by_name(tmp_path, home):
    write(tmp_path / "tao-flows.toml", '[budgets.team-a]\nlimit = "1.2 kWh"\nwindow = "2h"\nceiling = "2 kWh"\n')
    budgets = load_config(env=home, cwd=tmp_path).config.budgets
    assert budgets == {"team-a": EnergyBudget("team-a", 4_320_000.0, 7200.0, 7_200_000.0)}
    assert load_config(env=home, engine={"budgets": dict(budgets)}, cwd=tmp_path).config.budgets == budgets


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('mood = "off"', "unknown key 'mood' (did you mean 'mode'?)"),
        ('mode = "enforec"', "mode: 'enforec' is not one of off, observe, advise, enforce (did you mean 'enforce'?)"),
        ("mode = false", "mode: False is not one of"),
        ("team = 3", "team: 3 is not a text"),
        ('pools = ""', "pools: the path is empty"),
        ("tags = [1]", "tags: [1] is not a list of texts"),
        ('budgets = "a"', "budgets: 'a' is not a table"),
        ("[budgets.a]", "budgets: budget 'a' has no limit"),
        ('[budgets.a]\nlimit = "-3 J"', "budgets: budget 'a': limit: '-3 J' is not an energy"),
        ("[budgets.a]\nlimit = -3", "budgets: budget 'a': limit: -3 is negative"),
        ("[budgets.a]\nlimit = 0", "budgets: budget 'a': limit is 0 J"),
        ('[budgets.a]\nlimit = "3 J"\nwindow = "0s"', "budgets: budget 'a': window is 0 s"),
        ('[budgets.a]\nlimit = "3 J"\nwindow = "soon"', "budgets: budget 'a': window: 'soon' is not a duration"),
        ('[budgets.a]\nlimit = "3 J"\nceiling = "1 J"', "budgets: budget 'a': ceiling 1 J is below limit 3 J"),
        ('[budgets.a]\nlimit = "3 J"\nceilling = 9', "budgets: budget 'a': unknown key 'ceilling' (did you mean"),
        ("mode = off", "Invalid value (at line 1, column 8)"),
    ],
)
def test_a_wrong_file_is_named_with_the_key_and_the_remedy(tmp_path, home, written, said):
    path = write(tmp_path / "tao-flows.toml", written + "\n")
    text = complaint(lambda: load_config(env=home, cwd=tmp_path))
    assert str(path) in text
    assert said in text


def test_a_wrong_environment_variable_or_argument_is_named(tmp_path, home):
    text = complaint(lambda: load_config(env=home | {"TAO_FLOWS_MODE": "on"}, cwd=tmp_path))
    assert "TAO_FLOWS_MODE: 'on' is not one of" in text
    text = complaint(lambda: load_config(env=home, arguments={"modus": "off"}, cwd=tmp_path))
    assert "argument: unknown key 'modus'" in text


def test_a_named_file_must_be_there_and_readable(tmp_path, home):
    missing = home | {"TAO_FLOWS_CONFIG": "missing.toml"}
    assert "missing.toml: No such file" in complaint(lambda: load_config(env=missing, cwd=tmp_path))
    folder = home | {"TAO_FLOWS_CONFIG": str(tmp_path)}
    assert "Is a directory" in complaint(lambda: load_config(env=folder, cwd=tmp_path))
    (tmp_path / "latin.toml").write_bytes(b'team = "\xe9"\n')
    latin = home | {"TAO_FLOWS_CONFIG": "latin.toml"}
    assert "latin.toml" in complaint(lambda: load_config(env=latin, cwd=tmp_path))


def test_a_mistyped_variable_is_remarked_on_and_others_are_left_alone(tmp_path, home):
    env = home | {"TAO_FLOWS_MODEE": "off", "TAO_FLOWS_PREFECT_BLOCK": "default", "TAO_FLOWS_CI": "1"}
    resolved = load_config(env=env, cwd=tmp_path)
    assert resolved.remarks == ("TAO_FLOWS_MODEE is no setting; did you mean TAO_FLOWS_MODE?",)
    assert resolved.config.mode == "observe"


def test_settings_are_checked_without_reading_any_file(tmp_path, monkeypatch):
    write(tmp_path / "tao-flows.toml", "rubbish")
    monkeypatch.chdir(tmp_path)
    assert parse_settings("block", {"mode": "off", "team": None}) == {"mode": "off"}


def test_settings_survive_pickling(tmp_path, home):
    resolved = load_config(env=home, cwd=tmp_path, arguments={"budgets": {"a": {"limit": 5}}})
    assert pickle.loads(pickle.dumps(resolved)) == resolved


def test_a_watcher_sees_the_kill_switch_in_the_environment_and_in_the_file(tmp_path, home):
    watcher = ConfigWatcher(env=home, cwd=tmp_path)
    first = watcher.get()
    assert first.config.mode == "observe"
    assert watcher.get() is first
    home["TAO_FLOWS_MODE"] = "off"
    assert watcher.get().config.mode == "off"
    del home["TAO_FLOWS_MODE"]
    assert watcher.get().config.mode == "observe"
    path = write(tmp_path / "tao-flows.toml", 'mode = "off"\n')
    assert watcher.get().config.mode == "off"
    path.unlink()
    assert watcher.get().config.mode == "observe"


def test_a_watcher_keeps_the_last_settings_when_a_change_cannot_be_read(tmp_path, home):
    path = write(tmp_path / "tao-flows.toml", 'mode = "advise"\n')
    watcher = ConfigWatcher(env=home, cwd=tmp_path)
    assert watcher.get().config.mode == "advise"
    path.write_text('mode = "advis\n', encoding="utf-8")
    kept = watcher.get()
    assert kept.config.mode == "advise"
    assert "settings kept as they were" in kept.remarks[0]
    path.write_text('mode = "off" # again\n', encoding="utf-8")
    assert watcher.get().config.mode == "off"


def test_a_watcher_with_nothing_to_keep_says_what_is_wrong(tmp_path, home):
    write(tmp_path / "tao-flows.toml", "rubbish")
    assert "tao-flows.toml" in complaint(ConfigWatcher(env=home, cwd=tmp_path).get)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://tao:secret@db:5432/tao", "postgresql://tao:***@db:5432/tao"),
        ("postgresql://tao:se:c@ret@db/tao", "postgresql://tao:***@db/tao"),
        ("postgresql://db/tao?user=a&password=secret&sslmode=require", "postgresql://db/tao?user=a&password=***&sslmode=require"),
        ("sqlite:////var/ledger.db", "sqlite:////var/ledger.db"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(url, shown):
    assert mask_password(url) == shown


def test_a_budget_made_in_code_is_checked_too():
    assert EnergyBudget.parse("a", 40).window_s == 86_400.0
    assert "limit is -1 J" in complaint(lambda: EnergyBudget("a", -1.0), InputError)
    assert "limit is nan J" in complaint(lambda: EnergyBudget("a", float("nan")), InputError)


def run_config(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = "import typer; from tao_flows.cli.config import config_command; typer.run(config_command)"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"HOME": str(cwd), "COLUMNS": "160", "TERM": "dumb"} | env,
    )


def test_the_command_shows_every_setting_with_its_origin_as_json(tmp_path):
    path = write(tmp_path / "tao-flows.toml", 'ledger = "postgresql://tao:secret@db/tao"\n[budgets.a]\nlimit = 5\n')
    run = run_config("--json", cwd=tmp_path, TAO_FLOWS_TEAM="night")
    settings = {setting.pop("name"): setting for setting in json.loads(run.stdout)["settings"]}
    assert list(settings) == list(SETTINGS)
    assert settings["team"]["value"] == "night"
    assert settings["team"]["origin"] == "environment"
    assert settings["team"]["env"] == env_name("team") == "TAO_FLOWS_TEAM"
    assert settings["ledger"]["value"] == "postgresql://tao:***@db/tao"
    assert settings["ledger"]["origin"] == str(path)
    assert settings["budgets"]["value"]["a"]["limit_j"] == 5.0
    assert settings["mode"]["origin"] == "default"


def test_the_command_shows_people_where_a_value_was_set(tmp_path):
    run = run_config("--origin", cwd=tmp_path, TAO_FLOWS_MODE="off", TAO_FLOWS_MODEE="off")
    assert run.returncode == 0
    assert re.search(r"mode +off +TAO_FLOWS_MODE\b", run.stdout)
    assert "did you mean TAO_FLOWS_MODE?" in run.stderr


def test_the_command_says_a_wrong_setting_on_one_line_and_exits_with_2(tmp_path):
    run = run_config(cwd=tmp_path, TAO_FLOWS_MODE="onn")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert "TAO_FLOWS_MODE: 'onn' is not one of" in run.stderr


def test_pools_are_read_from_tables(tmp_path):
    path = write(
        tmp_path / "pools.toml",
        """
        [[pools]]
        pool_id = "local"

        [[pools]]
        pool_id = "north"
        zone = "SE1"
        capabilities = ["gpu"]
        pue = 1.1
        price_per_h = 2
        dispatch_energy_j = "3 kJ"
        queue_wait_s = "2m"
        energy_j = { mean = 20, low = 10, high = "40 J" }
        runtime_s = { p50 = 60, p95 = "2m" }
        """,
    )
    local, north = load_pools(path)
    assert local == WorkerPool("local")
    assert local.online
    assert local.price_per_h is None
    assert (north.zone, north.capabilities, north.pue, north.price_per_h) == ("SE1", ("gpu",), 1.1, 2.0)
    assert (north.dispatch_energy_j, north.queue_wait_s) == (3000.0, 120.0)
    assert (north.energy_j.low, north.energy_j.mean, north.energy_j.high) == (10.0, 20.0, 40.0)
    assert (north.runtime_s.p50, north.runtime_s.p95) == (60.0, 120.0)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('zome = "SE1"', "unknown field 'zome' (did you mean 'zone'?)"),
        ("zone = 1", "zone: 1 is not a text"),
        ("pue = 0.9", "pue: 0.9 is not a number of 1 or more"),
        ('pue = "1.2"', "pue: '1.2' is not a number"),
        ("pue = nan", "pue: nan is not a number"),
        ("power_w = inf", "power_w: inf is not a number"),
        (f"power_w = 1{'0' * 400}", "is not a number of 0 or more"),
        ("power_w = true", "power_w: True is not a number"),
        ("online = 1", "online: 1 is neither true nor false"),
        ('capabilities = "gpu"', "capabilities: 'gpu' is not a list of texts"),
        ('dispatch_energy_j = "lots"', "dispatch_energy_j: energy: 'lots' is not an energy"),
        ("energy_j = { mean = 1 }", "energy_j: {'mean': 1} is not a table of low, mean, high"),
        ("energy_j = { low = 3, mean = 2, high = 4 }", "energy_j: low, mean, high do not rise"),
        ('[[pools]]\npool_id = "a"', "number 2: pool_id: 'a' is taken by an earlier pool"),
        ("[[pools]]", "number 2: pool_id is missing"),
        ("[pool]", "unknown key 'pool'"),
    ],
)
def test_a_wrong_pool_is_named_with_its_table_its_field_and_the_remedy(tmp_path, field, said):
    path = write(tmp_path / "pools.toml", f'[[pools]]\npool_id = "a"\n{field}\n')
    text = complaint(lambda: load_pools(path))
    assert str(path) in text
    assert said in text


@pytest.mark.parametrize("text", ["", 'pools = "a"', "pools = [1]", "[pools]"])
def test_a_file_without_pool_tables_is_refused(tmp_path, text):
    assert "[[pools]]" in complaint(lambda: load_pools(write(tmp_path / "pools.toml", text)))


def test_a_function_may_give_the_engines_settings_as_they_stand(tmp_path):
    given = {"mode": "enforce"}
    watcher = ConfigWatcher(env={"HOME": str(tmp_path)}, engine=lambda: dict(given), engine_name="engine", cwd=tmp_path)
    first = watcher.get()
    assert (first.config.mode, first.origins["mode"]) == ("enforce", "engine")
    assert watcher.get() is first, "nothing has changed"
    given["mode"] = "off"
    assert watcher.get().config.mode == "off"
    given["mode"] = "of"
    kept = watcher.get()
    assert kept.config.mode == "off"
    assert "settings kept as they were" in kept.remarks[0]


def test_pools_may_be_handed_over_by_code(tmp_path):
    pools = (WorkerPool("north"),)
    config = load_config(engine={"pools": pools}, env={"HOME": str(tmp_path)}, cwd=tmp_path).config
    assert config.pools == pools
    assert load_pools(config.pools) == pools


@pytest.mark.parametrize(("text", "kept"), [("1/20", "1/20"), ("Failures", "failures")])
def test_reports_may_be_sampled(text, kept, tmp_path):
    env = {"HOME": str(tmp_path), "TAO_FLOWS_REPORT_ARTIFACTS": text}
    assert load_config(env=env, cwd=tmp_path).config.report_artifacts == kept


@pytest.mark.parametrize("text", ["1/0", "2/3", "sometimes", "1/"])
def test_a_sample_that_is_none_is_refused(text, tmp_path):
    env = {"HOME": str(tmp_path), "TAO_FLOWS_REPORT_ARTIFACTS": text}
    assert "1/N" in complaint(lambda: load_config(env=env, cwd=tmp_path))
