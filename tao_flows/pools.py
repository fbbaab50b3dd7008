"""Worker pools as an operator describes them: one ``[[pools]]`` table each in a TOML file.

Descriptions also come from code (a Block hands over plain ``WorkerPool`` objects) and from the ledger, where they are
kept as the same tables. The nearest to the decision holds: ``merge_pools(given in code, file, ledger)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.errors import ConfigError, InputError
from tao_flows.telemetry.prometheus import PrometheusPower
from tao_flows.tomlfile import did_you_mean, read_toml
from tao_flows.units import parse_duration_s, parse_energy_j

_MOST_PLACES: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """Where work can run, as far as it does not change from minute to minute. None means unknown.

    In Prefect a pool is a work pool and queue, or a task worker; in Airflow a queue and executor.
    """

    pool_id: str
    zone: str | None = None
    """Names the grid zone whose carbon and price signals hold there."""
    capabilities: tuple[str, ...] = ()
    online: bool = True
    trusted: bool = True
    pue: float = 1.0
    """Power usage effectiveness, 1 or more; at 1 only the IT equipment's joules count."""
    price_per_h: float | None = None
    power_w: float | None = None
    """Watts a task draws there."""
    power_cap_w: float | None = None
    power_from: PrometheusPower | None = None
    """Tells what the whole pool draws now."""
    temperature_limit_c: float | None = None
    """Degrees Celsius above which no more work should go there."""
    places: int | None = None
    """How many deferred tasks may be planned to start there in one slot of time; None: as many as will."""
    dispatch_energy_j: float = 0.0
    """Joules that sending a task there costs in itself."""
    queue_wait_s: float = 0.0
    """Seconds a task waits there before it starts."""
    energy_j: PredictedEnergy | None = None
    """Joules of a task there, for as long as none of its own runs tell."""
    runtime_s: PredictedRuntime | None = None
    """Seconds of a task there, for as long as none of its own runs tell."""
    org: str | None = None
    """The other organisation whose pool it is, and whose claims its figures are; no file of ours says it."""
    claimed_g_per_kwh: float | None = None
    """What that organisation claims its carbon intensity to be; it counts where no signal of ours tells of the zone."""


def load_pools(path: Path | tuple[WorkerPool, ...]) -> tuple[WorkerPool, ...]:
    """The pools that a TOML file describes, in its order, or those given. It is read again only when it has changed.

    Raises:
        ConfigError: the file cannot be read, or a table in it has a missing, unknown or malformed field.
    """
    if isinstance(path, tuple):
        return path
    try:
        stat = path.stat()
    except OSError:
        return _load(path, 0, 0)  # which says why
    return _load(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _load(path: Path, _mtime_ns: int, _size: int) -> tuple[WorkerPool, ...]:
    document = read_toml(path)
    for key in document:
        if key != "pools":
            raise ConfigError("BAD_POOL", f"{path}: unknown key {key!r}", "write each pool as a [[pools]] table")
    tables = document.get("pools")
    if not isinstance(tables, list) or not tables:
        raise ConfigError("BAD_POOL", f"{path}: no pools", 'write each pool as a [[pools]] table with pool_id = "..."')
    pools: dict[str, WorkerPool] = {}
    for number, table in enumerate(tables, start=1):
        where = f"{path}: [[pools]] number {number}"
        pool = pool_from_table(table, where)
        if pool.pool_id in pools:
            summary = f"{where}: pool_id: {pool.pool_id!r} is taken by an earlier pool"
            raise ConfigError("BAD_POOL", summary, "give every pool an id of its own")
        pools[pool.pool_id] = pool
    return tuple(pools.values())


def pool_from_table(table: object, where: str) -> WorkerPool:
    """The pool that one table describes.

    Args:
        table: its fields, as in the file.
        where: names the table in the error.

    Raises:
        ConfigError: BAD_POOL, a missing, unknown or malformed field.
    """
    if not isinstance(table, Mapping):
        raise ConfigError("BAD_POOL", f"{where}: not a table", "write each pool as a [[pools]] table")
    return WorkerPool(**_fields(table, where, _POOL_FIELDS, required=("pool_id",)))


def pool_table(pool: WorkerPool) -> dict[str, Any]:
    """The table that describes a pool, without what is at its default: ``pool_from_table`` gives the pool again."""
    table: dict[str, Any] = {"pool_id": pool.pool_id}
    for each in fields(pool):
        value = getattr(pool, each.name)
        if each.name == "pool_id" or value == each.default:
            continue
        if isinstance(value, PrometheusPower):
            power = {_POWER_NAMES.get(f.name, f.name): getattr(value, f.name) for f in fields(value)}
            table[each.name] = {name: given for name, given in power.items() if given}
        elif isinstance(value, (PredictedEnergy, PredictedRuntime)):
            table[each.name] = asdict(value)
        else:
            table[each.name] = list(value) if isinstance(value, tuple) else value
    return table


def merge_pools(*layers: Iterable[WorkerPool]) -> tuple[WorkerPool, ...]:
    """The pools of several descriptions, by id. Of two that describe the same pool the earlier holds, as a whole."""
    merged: dict[str, WorkerPool] = {}
    for layer in layers:
        for pool in layer:
            merged.setdefault(pool.pool_id, pool)
    return tuple(merged[pool_id] for pool_id in sorted(merged))


def _fields(
    table: Mapping[str, object], where: str, known: Mapping[str, Callable[[object], object]], required: tuple[str, ...]
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise ConfigError("BAD_POOL", f"{where}: unknown field {name!r}", did_you_mean(name, known))
        try:
            given[name] = known[name](value)
        except (InputError, ConfigError) as error:
            raise ConfigError("BAD_POOL", f"{where}: {name}: {error.summary}", error.remedy) from None
    for name in required:
        if name not in given:
            raise ConfigError("BAD_POOL", f"{where}: {name} is missing", f"add {name} = ...")
    return given


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InputError("BAD_POOL", f"{value!r} is not a text", 'write it in quotes: "..."')
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError("BAD_POOL", f"{value!r} is not a list of texts", 'write it as ["gpu", "large-memory"]')
    return tuple(_text(item) for item in value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise InputError("BAD_POOL", f"{value!r} is neither true nor false", "write true or false, without quotes")
    return value


def _number_from(least: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        # The upper bound turns away infinities, and whole numbers too long to be a float.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= sys.float_info.max:
            return float(value)
        raise InputError("BAD_POOL", f"{value!r} is not a number of {least:g} or more", "correct the number")

    return parse


def _count_from_one(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_PLACES:
        return value
    raise InputError("BAD_POOL", f"{value!r} is not a whole number of 1 or more", "correct the number")


def _energy(value: object) -> float:
    return parse_energy_j(value, what="energy")


def _duration(value: object) -> float:
    return parse_duration_s(value, what="duration")


def _rising(value: object, parse: Callable[[object], float], names: tuple[str, ...]) -> dict[str, float]:
    remedy = f"write {{ {', '.join(f'{name} = ...' for name in names)} }}, none below the one before"
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise InputError("BAD_POOL", f"{value!r} is not a table of {', '.join(names)}", remedy)
    numbers = {name: parse(value[name]) for name in names}
    if sorted(numbers.values()) != list(numbers.values()):
        raise InputError("BAD_POOL", f"{', '.join(names)} do not rise", remedy)
    return numbers


def _predicted_energy(value: object) -> PredictedEnergy:
    return PredictedEnergy(**_rising(value, _energy, ("low", "mean", "high")))


def _predicted_runtime(value: object) -> PredictedRuntime:
    return PredictedRuntime(**_rising(value, _duration, ("p50", "p95")))


def _power_from(value: object) -> PrometheusPower:
    if not isinstance(value, Mapping):
        raise InputError(
            "BAD_POOL", f"{value!r} is not a table", 'write { prometheus = "http://...", preset = "kepler" }'
        )
    given = _fields(value, "in it", _POWER_FIELDS, required=("prometheus",))
    names = {written: name for name, written in _POWER_NAMES.items()}
    return PrometheusPower(**{names.get(name, name): field for name, field in given.items()})


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InputError("BAD_POOL", f"{value!r} is not a table of labels", 'write { instance = "..." }')
    return {str(label): _text(text) for label, text in value.items()}


# What a table calls the fields of PrometheusPower.
_POWER_NAMES: Final = {"url": "prometheus", "timeout_s": "timeout", "max_age_s": "max_age"}
_POWER_FIELDS: Final[Mapping[str, Callable[[object], object]]] = {
    "prometheus": _text,
    "preset": _text,
    "query": _text,
    "match": _labels,
    "timeout": _duration,
    "max_age": _duration,
    "token_file": _text,
    "token_env": _text,
}
_POOL_FIELDS: Final[Mapping[str, Callable[[object], object]]] = {
    "pool_id": _text,
    "zone": _text,
    "capabilities": _texts,
    "online": _truth,
    "trusted": _truth,
    "pue": _number_from(1.0),
    "price_per_h": _number_from(0.0),
    "power_w": _number_from(0.0),
    "power_cap_w": _number_from(0.0),
    "power_from": _power_from,
    "temperature_limit_c": _number_from(-273.15),
    "places": _count_from_one,
    "dispatch_energy_j": _energy,
    "queue_wait_s": _duration,
    "energy_j": _predicted_energy,
    "runtime_s": _predicted_runtime,
}
