"""``tao-flows config``: every setting, its value, and where it was set."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tao_flows.budget import EnergyBudget
from tao_flows.cli._console import fail, print_json, stderr, stdout
from tao_flows.config import SETTINGS, Resolved, env_name, load_config, mask_password
from tao_flows.errors import ConfigError, MissingExtraError
from tao_flows.governance.environment import shown_setting
from tao_flows.pools import WorkerPool, load_pools
from tao_flows.redact import MASK
from tao_flows.rules import Rules
from tao_flows.signals.spec import SignalSpec
from tao_flows.units import format_duration, format_energy

if TYPE_CHECKING:
    from rich.table import Table


class Engine(str, Enum):
    """Where a setting may be kept besides the environment and the file."""

    NONE = "none"
    AIRFLOW = "airflow"
    PREFECT = "prefect"


def config_command(
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value was set.")] = False,
    engine: Annotated[Engine, typer.Option("--engine", help="Add the settings kept in this engine.")] = Engine.NONE,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Show every setting and its value."""
    try:
        resolved = resolve(engine)
        if resolved.config.pools is not None:
            load_pools(resolved.config.pools)  # named here or mistaken here, it is looked for here
    except (ConfigError, MissingExtraError) as error:
        fail(error)
    for remark in resolved.remarks:
        stderr().print(f"note: {remark}", markup=False, highlight=False, soft_wrap=True)
    if json:
        print_json({"schema": "tao-flows/config/1", "settings": [_as_json(name, resolved) for name in SETTINGS]})
    else:
        stdout().print(_table(resolved, with_origin=origin))


def resolve(engine: Engine) -> Resolved:
    """The settings as they hold in an engine.

    Raises:
        ConfigError: a setting is wrong.
        MissingExtraError: the engine is not installed here.
    """
    try:
        if engine is Engine.AIRFLOW:
            from airflow_plugin.settings import watcher

            return watcher().get()
        if engine is Engine.PREFECT:
            from tao_flows.prefect.settings import watcher

            return watcher().get()
    except ImportError as error:
        raise MissingExtraError(engine.value, f"reading the settings kept in {engine.value}") from error
    return load_config()


def _as_json(name: str, resolved: Resolved) -> dict[str, Any]:
    return {
        **shown_setting(name, resolved),
        "env": env_name(name) or None,
        "doc": SETTINGS[name].metadata["doc"],
    }


def _table(resolved: Resolved, *, with_origin: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("setting", "value", "set by" if with_origin else "what it is"):
        table.add_column(heading, overflow="fold")
    for name, setting in SETTINGS.items():
        given = getattr(resolved.config, name)
        value = Text(MASK if given is not None and setting.metadata["masked"] else _for_people(given))
        last = _origin(name, resolved) if with_origin else setting.metadata["doc"]
        table.add_row(Text(name, style="bold"), value, Text(last, style="dim"))
    return table


def _origin(name: str, resolved: Resolved) -> str:
    origin = resolved.origins[name]
    return env_name(name) if origin == "environment" else origin


def _for_people(value: object) -> str:
    if isinstance(value, dict):
        return (
            "\n".join(_signal(one) if isinstance(one, SignalSpec) else _budget(one) for one in value.values()) or "none"
        )
    if isinstance(value, tuple):
        return ", ".join(item.pool_id if isinstance(item, WorkerPool) else item for item in value) or "none"
    if isinstance(value, Rules):
        return "\n".join(map(str, value.items)) or "none"
    return "none" if value in (None, "") else mask_password(str(value))


def _budget(budget: EnergyBudget) -> str:
    ceiling = "" if budget.ceiling_j is None else f", never over {format_energy(budget.ceiling_j)}"
    return f"{budget.name}: {format_energy(budget.limit_j)} in {format_duration(budget.window_s)}{ceiling}"


def _signal(spec: SignalSpec) -> str:
    kind = f", {spec.kind}" if spec.kind else ""
    if spec.value is not None:
        return f"{spec.name}: {spec.value:g} {spec.unit}{kind}"
    return f"{spec.name}: {spec.csv or f'{spec.provider} {spec.area}'}{kind}"
