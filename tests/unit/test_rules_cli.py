from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tao_flows.cli.config import config_command
from tao_flows.cli.rules import rules_app

RULES = """
mode = "enforce"

[budgets.team-a]
limit = "1 kWh"

[[rules]]
name = "payments-*"
mode = "off"
explain = "audited until June"

[[rules]]
name = "nightly"
mode = "enforce"
budgets = "team-a"
max_defer = "2h"
deadline = "by 06:00 Europe/Berlin after data_interval_end"
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tao-flows.toml"
    path.write_text(RULES)
    return path


def rules(*arguments: str) -> Any:
    return CliRunner().invoke(rules_app, list(arguments))


def test_check_says_how_many_rules_there_are_and_where(settings: Path) -> None:
    done = rules("check")
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"2 rules from {settings}, global mode enforce\n", "")


def test_check_notes_what_looks_like_a_mistake(settings: Path) -> None:
    settings.write_text(RULES + '\n[[rules]]\nname = "nightly"\nmode = "observe"\nbudgets = ["team-b"]\n')
    done = rules("check")
    assert done.exit_code == 0
    assert "note: rule 3: no budget is named 'team-b'; there are: team-a [UNKNOWN_BUDGET]" in done.stderr
    assert "note: rule 3: mode and budgets: rule 2 comes first and matches all that rule 3 does" in done.stderr
    answer = json.loads(rules("check", "--json").stdout)
    assert (answer["schema"], answer["mode"], answer["path"]) == ("tao-flows/rules-check/1", "enforce", str(settings))
    assert [(note["rule"], note["code"]) for note in answer["notes"]] == [(3, "UNKNOWN_BUDGET"), (3, "SHADOWED")]
    assert answer["rules"][0] == {"name": ["payments-*"], "mode": "off", "explain": "audited until June"}
    assert answer["rules"][1]["deadline"] == "by 06:00:00 Europe/Berlin after data_interval_end"


def test_check_refuses_a_bad_rule_on_one_line(settings: Path) -> None:
    settings.write_text('[[rules]]\nname = "a"\nmode = "enforced"\n')
    done = rules("check", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"{settings}: rules: rule 1: mode: 'enforced' is not one of" in done.stderr


def test_explain_says_what_holds_and_which_rule_says_so(settings: Path) -> None:
    done = rules("explain", "--engine", "airflow", "--flow", "nightly", "--deferrable")
    assert done.exit_code == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()}
    assert lines == {
        "mode": "enforce rule 2",
        "budgets": "team-a rule 2",
        "deferrable": "yes the code's own",
        "reroutable": "no no rule says",
        "max_defer": "2 h 0 min rule 2",
        "deadline": "by 06:00:00 Europe/Berlin after data_interval_end rule 2",
        "allowed_orgs": "none no rule says",
    }
    manual = json.loads(
        rules("explain", "--engine", "airflow", "--flow", "nightly", "--trigger", "manual", "--json").stdout
    )
    assert (manual["mode"], manual["budgets"], manual["max_defer_s"]) == ("observe", ["team-a"], 7_200.0)
    assert manual["because"][0] == {
        "effect": "mode", "rule": None, "why": "a manual run is observed unless a rule names it",
    }  # fmt: skip
    off = rules("explain", "--engine", "prefect", "--flow", "payments-eu")
    assert "rule 1 (audited until June)" in off.stdout.splitlines()[0]


def test_explain_refuses_an_engine_or_a_trigger_there_is_not(settings: Path) -> None:
    engine = rules("explain", "--engine", "prefct", "--flow", "a")
    trigger = rules("explain", "--engine", "prefect", "--flow", "a", "--trigger", "manuel")
    assert (engine.exit_code, trigger.exit_code) == (2, 2)
    assert "--engine: 'prefct' is not one of airflow, prefect; did you mean 'prefect'? [BAD_USAGE]" in engine.stderr
    assert "--trigger: 'manuel' is not one of" in trigger.stderr


def test_config_shows_the_rules(settings: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(config_command)
    shown = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    (entry,) = [entry for entry in shown["settings"] if entry["name"] == "rules"]
    assert (entry["origin"], entry["env"], len(entry["value"])) == (str(settings), None, 2)
    assert "name=['payments-*'], mode=off" in CliRunner().invoke(app, [], env={"COLUMNS": "200"}).stdout


def test_the_example_of_the_documentation_works_as_it_is_shown(settings: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    settings.write_text(example)
    session = next(text for text in re.findall(r"```console\n(.*?)```", page, re.DOTALL) if "rules check" in text)
    shown = ""
    for command in re.findall(r"\$ tao-flows rules (.*)", session):
        done = rules(*shlex.split(command))
        assert (done.exit_code, done.stderr) == (0, "")
        shown += f"$ tao-flows rules {command}\n{done.stdout}"
    assert shown.replace(str(settings), "tao-flows.toml") == session
