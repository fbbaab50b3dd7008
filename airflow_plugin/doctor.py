"""What ``tao-flows doctor --engine airflow`` says of a deployment: where we decide, where we cannot, and why."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, Final

from airflow_plugin import _compat
from airflow_plugin.gate import in_force
from airflow_plugin.places import ExecutorSpec, executors, place_of
from airflow_plugin.settings import open_named
from tao_flows.config import TaoConfig
from tao_flows.errors import TaoError
from tao_flows.ledger.pools import PoolStore
from tao_flows.pools import WorkerPool, load_pools, merge_pools

_MODES: Final = {
    "off": "nothing is metered or decided",
    "observe": "tasks are metered; decisions are recorded, none is acted on",
    "advise": "tasks are metered; decisions are shown as advice, none is acted on",
    "enforce": "what rules opt in is deferred, moved or denied",
}
_OF_OURS: Final = ("LocalExecutor", "CeleryExecutor", "KubernetesExecutor")
"""There is one of ours for each, with ``Tao`` before its name."""
_VIEWS: Final = (3, 1)
"""The first Airflow that shows plugins' pages as tabs."""


def examine(config: TaoConfig, ledger: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The checks of this deployment: ``id``, ``status``, ``code``, ``summary`` and ``remedy`` of each.

    Args:
        config: the settings as they hold in Airflow.
        ledger: what doctor found of the ledger.

    Raises:
        ConfigError: an option that is Airflow's alone is wrong.
    """
    specs, gate = executors(), in_force()
    try:
        jobs: tuple[tuple[str, str], ...] | None = _compat.alive_jobs()
        unreadable = ""
    except Exception as error:  # noqa: BLE001 - whatever keeps the database from being read is the finding
        jobs, unreadable = None, f"{type(error).__name__}: {error}".splitlines()[0]
    return [
        _row("mode", "ready", f"{config.mode}: {_MODES[config.mode]}"),
        *(_executor(spec, specs, gate) for spec in specs),
        _triggerer(config, jobs, unreadable),
        _sharing(config, ledger, specs, jobs or ()),
        _places(config, specs),
        _signing(config, specs),
        _pages(),
        _plugin(),
    ]


def _row(check: str, status: str, summary: str, code: str = "", remedy: str = "", **more: Any) -> dict[str, Any]:
    return {"id": check, "status": status, "code": code, "summary": summary, "remedy": remedy, **more}


def _executor(spec: ExecutorSpec, specs: tuple[ExecutorSpec, ...], gate: bool) -> dict[str, Any]:
    name = spec.path.rpartition(".")[2]
    about = {"name": spec.alias}
    try:
        decides = _is_mixed_in(spec)
    except Exception as error:  # noqa: BLE001 - it is the user's code, and the scheduler would not start with it
        said = f"{name} cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        remedy = "install what it needs, or correct [core] executor"
        return _row("executor", "broken", said, "EXECUTOR_BROKEN", remedy, **about, mechanism="none")
    if decides:
        others = "other executors" if len(specs) > 1 else "nowhere: it has no queues, and there is no other executor"
        moves = "moves to other queues" if spec.has_queues else f"moves to {others}"
        said = f"{name}: decides in the scheduler; defers without a worker slot, {moves}"
        if gate:
            said += "; the worker's gate defers, too, and a task may wait twice"
            return _row("executor", "ready", said, "GATE_TOO", "set [tao_flows] gate = off", **about, mechanism="mixin")
        return _row("executor", "ready", said, **about, mechanism="mixin")
    if name in _OF_OURS:
        better = f"set [core] executor = airflow_plugin.executor.Tao{name}"
    else:
        better = f"name airflow_plugin.executor.tao_executor({name}) in a module of yours"
    remedy = f"{better} to defer without a worker slot and to move; where a platform sets the executor, this is all"
    if not gate:
        said = f"{name}: meters only: it does not decide, and neither does the worker as [tao_flows] gate is set"
        remedy = f"{better}; or set [tao_flows] gate = on to decide on the worker"
        return _row("executor", "ready", said, "METER_ONLY", remedy, **about, mechanism="meter")
    said = f"{name}: decides on the worker (gate); a task takes a slot for the question, and moves nowhere"
    return _row("executor", "ready", said, "GATE_ONLY", remedy, **about, mechanism="gate")


def _is_mixed_in(spec: ExecutorSpec) -> bool:
    module, dot, name = spec.path.rpartition(".")
    if not dot:
        return False  # one of those that Airflow knows by name
    found = getattr(importlib.import_module(module), name)
    from airflow_plugin.executor import TaoMixin

    return issubclass(found, TaoMixin)


def _triggerer(config: TaoConfig, jobs: tuple[tuple[str, str], ...] | None, unreadable: str) -> dict[str, Any]:
    if jobs is None:
        said, remedy = f"Airflow's database cannot be read: {unreadable}", "run doctor where the scheduler runs"
        return _row("triggerer", "denied", said, "DATABASE_UNREADABLE", remedy)
    hosts = [host for kind, host in jobs if kind == "TriggererJob"]
    if hosts:
        return _row("triggerer", "ready", f"{len(hosts)} alive, on {', '.join(sorted(set(hosts)))}")
    status = "broken" if config.mode == "enforce" else "absent"
    said = "none is alive: a task that is deferred would wait until one is"
    return _row("triggerer", status, said, "NO_TRIGGERER", "run `airflow triggerer`")


def _sharing(
    config: TaoConfig, ledger: Mapping[str, Any], specs: tuple[ExecutorSpec, ...], jobs: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    elsewhere = [spec.alias for spec in specs if not spec.is_local]
    hosts = {host for _, host in jobs}
    if ledger["shared"] is None:
        return _row("sharing", "absent", "the ledger names none that could be shared")
    if ledger["shared"]:
        return _row("sharing", "ready", "the ledger is one for all hosts")
    if not elsewhere and len(hosts) <= 1:
        return _row("sharing", "ready", "the ledger is this host's, as are the tasks")
    who = f"{len(hosts)} hosts" if len(hosts) > 1 else f"the workers of {', '.join(elsewhere)}, if on other hosts,"
    said = f"the ledger is a file, and {who} would each have their own: budgets and waits are not kept together"
    remedy = "keep the ledger in PostgreSQL; on one host, this does no harm"
    status = "broken" if config.mode == "enforce" else "ready"
    return _row("sharing", status, said, "LEDGER_NOT_SHARED", remedy)


def _places(config: TaoConfig, specs: tuple[ExecutorSpec, ...]) -> dict[str, Any]:
    pools = [pool.pool_id for pool in _pools(config)]
    if not pools:
        return _row("places", "absent", "no pools are described: tasks are not moved", remedy="see `tao-flows pools`")
    nowhere = [pool for pool in pools if place_of(pool, specs[0], specs) is None]
    if nowhere:
        known = ", ".join(f"{s.alias}:QUEUE" if s.has_queues else s.pool for s in specs)
        said = f"no executor here has {', '.join(nowhere)}: nothing is moved there"
        return _row("places", "broken", said, "POOL_NOWHERE", f"there are {known}", pools=pools, nowhere=nowhere)
    return _row("places", "ready", f"each has an executor: {', '.join(pools)}", pools=pools, nowhere=[])


def _pools(config: TaoConfig) -> tuple[WorkerPool, ...]:
    """Those that can be read: what is wrong with the file or the ledger has a line of its own."""
    layers: list[tuple[WorkerPool, ...]] = []
    try:
        layers.append(load_pools(config.pools) if config.pools is not None else ())
    except TaoError:
        pass
    try:
        ledger = open_named(config.ledger)
        try:
            layers.append(PoolStore(ledger).all())
        finally:
            ledger.close()
    except TaoError:
        pass
    return merge_pools(*layers)


def _signing(config: TaoConfig, specs: tuple[ExecutorSpec, ...]) -> dict[str, Any]:
    """Who can sign. Asked as whoever runs doctor: where tasks run, nobody should be able to."""
    if config.bundles is None:
        return _row("signing", "absent", "no bundles are asked for: set bundles and, for the API server, signing_key")
    key = config.signing_key
    if key is None or not os.access(key, os.R_OK):
        said = f"bundles are kept in {config.bundles}; the signing key cannot be read by who asks here"
        return _row("signing", "ready", f"{said}, as it should be where tasks run")
    local = [spec.alias for spec in specs if spec.is_local]
    if local:
        said = (
            f"{key} can be read here, and so by tasks of {', '.join(local)} that run as the same user: they could sign"
        )
        remedy = "have the API server run as a user of its own, who alone can read the key"
        return _row("signing", "broken", said, "KEY_IN_REACH", remedy)
    said = f"{key} can be read here, as it must be by the API server, and by nobody who runs tasks"
    return _row("signing", "ready", said, "KEY_HERE", "run doctor where tasks run, as their user, too")


def _pages() -> dict[str, Any]:
    from airflow import __version__

    if tuple(int(part) for part in __version__.split(".")[:2]) >= _VIEWS:
        return _row("pages", "ready", f"Airflow {__version__}: a tab of each DAG run, and a page in the navigation")
    said = f"Airflow {__version__} has no tabs of plugins: the extra link of a task opens its run's report"
    return _row("pages", "ready", said, "NO_TABS", "Airflow 3.1 and later have them")


def _plugin() -> dict[str, Any]:
    errors = {source: said for source, said in _compat.plugin_errors().items() if "tao" in source}
    if not errors:
        return _row("plugin", "ready", "loaded")
    said = "; ".join(f"{source}: {text.splitlines()[-1]}" for source, text in errors.items())
    return _row(
        "plugin", "broken", said, "PLUGIN_BROKEN", "nothing is metered until it loads; `airflow plugins` says more"
    )
