"""``tao-flows rules``: whether the rules are right, and what holds for a task and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stderr
from tao_flows.config import load_config
from tao_flows.errors import InputError, TaoError
from tao_flows.report.text import count, plain
from tao_flows.rulecheck import check
from tao_flows.rules import ENGINES, TRIGGERS, Ruling, Subject
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import format_duration, parse_duration_s

rules_app = typer.Typer(help="Whether the rules are right, and what holds for a task and why.")

_Json = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]


@rules_app.command("check")
def check_command(as_json: _Json = False) -> None:
    """Read the rules, and note what looks like a mistake."""
    try:
        resolved = load_config()
    except TaoError as error:
        fail(error)
    config = resolved.config
    notes = check(config.rules, config.mode, config.budgets.keys())
    if as_json:
        print_json(
            {
                "schema": "tao-flows/rules-check/1",
                "path": resolved.origins["rules"],
                "mode": config.mode,
                "rules": config.rules.to_json(),
                "notes": [note.to_json() for note in notes],
            }
        )
        return
    print(f"{count(len(config.rules.items), 'rule')} from {resolved.origins['rules']}, global mode {config.mode}")
    for note in notes:
        stderr().print(
            f"note: rule {note.rule}: {note.text} [{note.code}]", markup=False, highlight=False, soft_wrap=True
        )


@rules_app.command("explain")
def explain_command(
    engine: Annotated[str, typer.Option(metavar="|".join(ENGINES))],
    flow: Annotated[str, typer.Option(help="The name of the flow, or the id of the DAG.")],
    task: Annotated[str, typer.Option()] = "",
    tag: Annotated[list[str] | None, typer.Option(help="May be given more than once.")] = None,
    owner: Annotated[str, typer.Option()] = "",
    operator: Annotated[str, typer.Option(help="Airflow's operator class.")] = "",
    pool: Annotated[str, typer.Option()] = "",
    trigger: Annotated[str, typer.Option(metavar="|".join(TRIGGERS))] = "scheduled",
    sensor: Annotated[bool, typer.Option("--sensor", help="The task is a sensor.")] = False,
    deferrable: Annotated[bool | None, typer.Option(help="What its code says; by default, nothing.")] = None,
    reroutable: Annotated[bool | None, typer.Option(help="What its code says; by default, nothing.")] = None,
    budgeted: Annotated[bool, typer.Option("--budgeted", help="Its code names a budget.")] = False,
    max_defer: Annotated[str | None, typer.Option(metavar="DURATION", help="What its code says.")] = None,
    as_json: _Json = False,
) -> None:
    """Say what holds for a task, and which rule says so."""
    try:
        for name, word, known in (("--engine", engine, ENGINES), ("--trigger", trigger, TRIGGERS)):
            if word not in known:
                summary = f"{name}: {word!r} is not one of {', '.join(known)}"
                raise InputError("BAD_USAGE", summary, did_you_mean(word, known))
        subject = Subject(
            engine, flow, task, tuple(tag or ()), owner, operator, pool, trigger, sensor, deferrable, reroutable, budgeted,
            None if max_defer is None else parse_duration_s(max_defer, what="--max-defer"),
        )  # fmt: skip
        config = load_config().config
    except TaoError as error:
        fail(error)
    ruling = config.rules.ruling(subject, config.mode)
    if as_json:
        print_json({"schema": "tao-flows/rules-explain/1", **ruling.to_json()})
        return
    values = _values(ruling)
    for because in ruling.because:
        print(f"{because.effect:<11} {values[because.effect]:<20} {plain(because.why, limit=200)}")


def _values(ruling: Ruling) -> dict[str, Any]:
    return {
        "mode": ruling.mode,
        "budgets": plain(", ".join(ruling.budgets)) or "none",
        "deferrable": "yes" if ruling.deferrable else "no",
        "reroutable": "yes" if ruling.reroutable else "no",
        "max_defer": format_duration(ruling.max_defer_s) if ruling.max_defer_s else "none",
        "deadline": "none" if ruling.deadline is None else str(ruling.deadline),
        "allowed_orgs": plain(", ".join(ruling.allowed_orgs)) or "none",
    }
