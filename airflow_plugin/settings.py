"""The ``[tao_flows]`` section of Airflow's configuration, as a layer of tao-flows' own, and what is built from it."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from airflow_plugin import _compat
from airflow_plugin.connections import AirflowConnections
from airflow_plugin.provider_info import FILE_OPTION, GATE_OPTION, OPTIONS, SECTION
from tao_flows import runtime
from tao_flows.config import CONFIG_FILE_ENV, ConfigWatcher, TaoConfig
from tao_flows.errors import ConfigError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.runtime import Tao
from tao_flows.tomlfile import CONNECTION, did_you_mean

Gate = Literal["auto", "on", "off"]

CONNECTIONS: Final = AirflowConnections()
"""This process's."""


@dataclass(frozen=True, slots=True)
class AirflowOptions:
    """What ``[tao_flows]`` sets that is Airflow's alone."""

    gate: Gate = "auto"
    """Whether the worker asks before it runs a task, and may defer it; auto: where the executor has not decided."""


def airflow_settings() -> dict[str, object]:
    """What Airflow's configuration sets, for ``load_config(engine=..., engine_name="airflow")``.

    Options that are not set, or set to nothing, are left out. Airflow's own ways of setting them count:
    ``airflow.cfg``, ``AIRFLOW__TAO_FLOWS__*``, and for ``ledger`` also its ``_CMD`` and ``_SECRET`` forms.
    """
    values = {name: _given(name) for name in OPTIONS}
    return {name: value for name, value in values.items() if value}


def airflow_options() -> AirflowOptions:
    """The options that are Airflow's alone.

    Raises:
        ConfigError: BAD_SETTING, one is none of its choices.
    """
    given = _given(GATE_OPTION).lower() or "auto"
    if given not in get_args(Gate):
        choices = get_args(Gate)
        summary = f"airflow: {GATE_OPTION}: {given!r} is not one of {', '.join(choices)}"
        raise ConfigError("BAD_SETTING", summary, did_you_mean(given, choices))
    return AirflowOptions(gate=cast("Gate", given))


def watcher() -> ConfigWatcher:
    """Settings as they hold inside Airflow: environment, then Airflow's configuration, then the file.

    Raises:
        ConfigError: an option that is Airflow's alone is wrong.
    """
    airflow_options()
    file = _given(FILE_OPTION)
    env = ChainMap(cast("dict[str, str]", os.environ), {CONFIG_FILE_ENV: file} if file else {})
    return ConfigWatcher(env=env, engine=airflow_settings(), engine_name="airflow")


def tao_here() -> Tao | None:
    """This process's ``Tao``, with Airflow's settings in it; None where it cannot be built, which is logged once."""
    return runtime.current(_watcher_here, role="engine", connections=CONNECTIONS)


def open_named(setting: str) -> RelationalLedger:
    """Opens the ledger that the setting ``ledger`` names, for who reads it beside ``tao_here``.

    Raises:
        LedgerError: CONNECTION_UNKNOWN, it is a connection that cannot be looked up.
        ConfigError: it names no ledger.
        MissingExtraError: what the ledger needs is not installed.
    """
    if setting.startswith(CONNECTION):
        return CONNECTIONS.ledger(setting.removeprefix(CONNECTION).strip())
    return open_ledger(setting)


def _watcher_here() -> ConfigWatcher:
    watching = watcher()
    CONNECTIONS.fetch(_named(watching.get().config))
    return watching


def _named(config: TaoConfig) -> Iterator[str]:
    """The connections that settings name."""
    if config.ledger.startswith(CONNECTION):
        yield config.ledger.removeprefix(CONNECTION).strip()
    yield from (spec.key_conn for spec in config.signals.values() if spec.key_conn)
    yield from (partner.key_conn for partner in config.partners.values() if partner.key_conn)


def _given(option: str) -> str:
    return _compat.setting(SECTION, option)
