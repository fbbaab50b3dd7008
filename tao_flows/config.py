"""Settings: what there is to set, and which of five places it was set in.

Precedence, highest first: arguments, environment, the engine's own configuration, a TOML file, defaults. Each
setting is taken whole from the highest place that has it, and `Resolved.origins` says which that was.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from tao_flows.budget import EnergyBudget
from tao_flows.errors import ConfigError, InputError
from tao_flows.partners import PartnerSpec, org_name, parse_partners
from tao_flows.records import Who
from tao_flows.rules import Mode, Rules
from tao_flows.signals.spec import SignalSpec, parse_signals
from tao_flows.tomlfile import CONNECTION, did_you_mean, nearest_word, read_toml

if TYPE_CHECKING:
    from tao_flows.pools import WorkerPool

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
REPORTS: Final = ("always", "failures", "never")
"""After which runs there is a report; or ``1/N``."""

ENV_PREFIX: Final = "TAO_FLOWS_"
CONFIG_FILE_ENV: Final = "TAO_FLOWS_CONFIG"
ENVIRONMENT: Final = "environment"
LOCAL_CONFIG_FILE: Final = "tao-flows.toml"
RETENTION: Final = r"([1-9][0-9]{0,4})(d|w|mo|y)"
"""A period by the calendar: days, weeks, months, years."""
RESULTS: Final = "results"
"""The setting ``bundle_storage`` for where Prefect keeps results."""
AGENT_OFF: Final = "off"
"""The setting for asking no node agent."""


def _text(value: object, _base: Path) -> str:
    if not isinstance(value, str):
        raise InputError("BAD_SETTING", f"{value!r} is not a text", "give a text")
    return value


def _texts(value: object, _base: Path) -> tuple[str, ...]:
    items: object = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise InputError("BAD_SETTING", f"{value!r} is not a list of texts", 'give a list, or a text such as "a,b"')
    return tuple(item.strip() for item in items if item.strip())


def _path(value: object, base: Path) -> Path:
    text = _text(os.fspath(value) if isinstance(value, os.PathLike) else value, base)
    if not text:
        raise InputError("BAD_SETTING", "the path is empty", "give the path of a file")
    return base / Path(text).expanduser()


def _agent(value: object, base: Path) -> str:
    if isinstance(value, str) and value.strip().lower() == AGENT_OFF:
        return AGENT_OFF
    return str(_path(value, base))


def _ledger(value: object, base: Path) -> str:
    if isinstance(value, str) and value.startswith(CONNECTION):
        return value.strip()
    if isinstance(value, str) and value.startswith("sqlite:"):
        value = value.partition(":///")[2]
    elif isinstance(value, str) and "://" in value:
        return value
    return f"sqlite:///{_path(value, base)}"


def _choice(choices: object) -> Callable[[object, Path], str]:
    known = get_args(choices)

    def parse(value: object, _base: Path) -> str:
        for choice in known:
            if isinstance(value, str) and value.strip().lower() == choice.lower():
                return str(choice)
        raise InputError("BAD_SETTING", f"{value!r} is not one of {', '.join(known)}", did_you_mean(str(value), known))

    return parse


def _reports(value: object, _base: Path) -> str:
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in REPORTS or re.fullmatch(r"1/[1-9][0-9]{0,8}", text):
        return text
    remedy = f"give {', '.join(REPORTS)}, or 1/N for one good run in N and every other"
    raise InputError("BAD_SETTING", f"{value!r} is not one of {', '.join(REPORTS)}, 1/N", remedy)


def _pools(value: object, base: Path) -> Path | tuple[WorkerPool, ...]:
    # Code, such as a Block, hands them over as they are; what a person writes is a file's path.
    return value if isinstance(value, tuple) else _path(value, base)


def _budgets(value: object, _base: Path) -> dict[str, EnergyBudget]:
    if not isinstance(value, Mapping):
        raise InputError("BAD_SETTING", f"{value!r} is not a table", 'write [budgets.NAME] with limit = "1 kWh"')
    return {str(name): EnergyBudget.from_table(str(name), entry) for name, entry in value.items()}


def _org(value: object, _base: Path) -> str:
    return org_name(value)


def _storage(value: object, base: Path) -> str:
    text = _text(value, base).strip()
    return text if not text or text == RESULTS or "://" in text or "::" in text else str(_path(text, base))


def _retention(value: object, base: Path) -> str:
    text = _text(value, base).strip().lower()
    if text and not re.fullmatch(RETENTION, text):
        remedy = "give a number of days, weeks, months or years, such as 10y or 6mo"
        raise InputError("BAD_SETTING", f"{value!r} is no period", remedy)
    return text


def period_days(text: str) -> int:
    """A period in days, a month taken as 31 and a year as 366: what is kept is never kept for less.

    Raises:
        InputError: BAD_SETTING, it is none.
    """
    found = re.fullmatch(RETENTION, _retention(text, Path()))
    return int(found[1]) * _DAYS_OF[found[2]] if found else 0


_DAYS_OF: Final = {"d": 1, "w": 7, "mo": 31, "y": 366}


def _rules(value: object, _base: Path) -> Rules:
    return Rules.parse(value)


def default_ledger(env: Mapping[str, str] = os.environ) -> str:
    """The URL of the ledger in the user's state directory (XDG Base Directory Specification).

    Raises:
        ConfigError: there is no home directory to put it in.
    """
    state = state_directory(env)
    if state is None:
        remedy = "set TAO_FLOWS_LEDGER to the path of a file"
        raise ConfigError("NO_HOME", "there is no home directory to keep the ledger in", remedy)
    return f"sqlite:///{state / 'ledger.db'}"


def state_directory(env: Mapping[str, str] = os.environ) -> Path | None:
    """Where the user's state is kept (XDG Base Directory Specification), or None without a home directory."""
    return _user_directory(env, "XDG_STATE_HOME", ".local/state")


def _user_directory(env: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    # The specification has relative values ignored.
    base = Path(env.get(variable, ""))
    if not base.is_absolute():
        try:
            base = (Path(env["HOME"]) if env.get("HOME") else Path.home()) / below_home
        except RuntimeError:
            return None
    return base / "tao-flows"


def _about(parse: Callable[[object, Path], object], doc: str, *, masked: bool = False) -> Mapping[str, object]:
    """``masked``: its value is never shown, such as the place of a key."""
    return {"parse": parse, "doc": doc, "masked": masked}


@dataclass(frozen=True, slots=True)
class TaoConfig:
    """Every setting. ``load_config`` fills it from where settings are kept, and checks what it finds there."""

    mode: Mode = field(
        default="observe", metadata=_about(_choice(Mode), "off, observe, advise or enforce; off is the kill switch")
    )
    ledger: str = field(
        default_factory=default_ledger, metadata=_about(_ledger, "where records are kept: URL, path or conn:NAME")
    )
    sources: tuple[str, ...] = field(
        default=(), metadata=_about(_texts, "energy sources to try, in order; none given: every one, best first")
    )
    namespace: str = field(default="default", metadata=_about(_text, "keeps apart deployments that share a ledger"))
    team: str = field(default="", metadata=_about(_text, "the team that records are charged to"))
    owner: str = field(default="", metadata=_about(_text, "the owner of the records"))
    cluster: str = field(default="", metadata=_about(_text, "the cluster the work runs in"))
    model_id: str = field(default="", metadata=_about(_text, "the model that is trained or served"))
    tags: tuple[str, ...] = field(default=(), metadata=_about(_texts, "free labels on every record"))
    log_level: LogLevel = field(
        default="INFO", metadata=_about(_choice(LogLevel), "level of the one line logged for each task")
    )
    report_artifacts: str = field(
        default="always",
        metadata=_about(_reports, "after which runs the engine gets a report: always, failures, never or 1/N"),
    )
    pools: Path | tuple[WorkerPool, ...] | None = field(
        default=None, metadata=_about(_pools, "TOML file that describes the worker pools")
    )
    budgets: Mapping[str, EnergyBudget] = field(
        default_factory=dict, metadata=_about(_budgets, "energy budgets by name: limit, window, ceiling")
    )
    rules: Rules = field(
        default_factory=Rules, metadata=_about(_rules, "what holds for which flows and tasks, first match first")
    )
    signals: Mapping[str, SignalSpec] = field(
        default_factory=dict, metadata=_about(parse_signals, "carbon intensity and price by zone, and where from")
    )
    org: str = field(default="", metadata=_about(_org, "what partners call this organisation, as a host's name"))
    trust: Path | None = field(
        default=None, metadata=_about(_path, "file of the keys of other organisations; none: none is trusted")
    )
    partners: Mapping[str, PartnerSpec] = field(
        default_factory=dict, metadata=_about(parse_partners, "other organisations: documents, API and its key")
    )
    bundles: Path | None = field(
        default=None, metadata=_about(_path, "directory of the signed records of runs; none: none is made")
    )
    signing_key: Path | None = field(
        default=None, metadata=_about(_path, "file of the key that signs them, where no user code runs", masked=True)
    )
    bundle_storage: str = field(
        default="",
        metadata=_about(_storage, "a further place for their archives: a path, a URL, or results (Prefect's storage)"),
    )
    provider_inputs: Path | None = field(
        default=None, metadata=_about(_path, "YAML file of what only the provider of a model knows")
    )
    retention: str = field(
        default="", metadata=_about(_retention, "how long bundles are to be kept, such as 10y; none: for good")
    )
    ledger_retention: str = field(
        default="",
        metadata=_about(_retention, "age at which ledger compact sums records up, such as 90d; none: only when told"),
    )
    calibration: Path | None = field(
        default=None, metadata=_about(_path, "file of the idle baseline; none: the user's or the system's")
    )
    agent: str = field(
        default="", metadata=_about(_agent, "socket of the node agent, or off; none given: the system's, the user's")
    )
    powercap_root: Path = field(
        default=Path("/sys/class/powercap"), metadata=_about(_path, "where the kernel shows RAPL counters")
    )
    proc_root: Path = field(default=Path("/proc"), metadata=_about(_path, "where the kernel shows processes"))
    cgroup_root: Path = field(
        default=Path("/sys/fs/cgroup"), metadata=_about(_path, "where the kernel shows control groups")
    )

    @property
    def who(self) -> Who:
        """Whom records belong to where nothing nearer says so."""
        return Who(self.team, self.owner, self.cluster, self.model_id, self.tags)


SETTINGS: Final[Mapping[str, Field[Any]]] = {setting.name: setting for setting in fields(TaoConfig)}
NOT_IN_ENVIRONMENT: Final = frozenset({"budgets", "partners", "rules", "signals"})


def env_name(setting: str) -> str:
    """The environment variable of a setting; empty where it has none."""
    return "" if setting in NOT_IN_ENVIRONMENT else ENV_PREFIX + setting.upper()


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings and where each came from."""

    config: TaoConfig
    origins: Mapping[str, str]
    """By setting: ``argument``, ``environment``, the engine's name, the path of a file, or ``default``."""
    remarks: tuple[str, ...] = ()
    """What looks like a mistake and is none for certain, a line each."""


def load_config(
    *,
    arguments: Mapping[str, object] | None = None,
    env: Mapping[str, str] = os.environ,
    engine: Mapping[str, object] | None = None,
    engine_name: str = "",
    cwd: Path | None = None,
) -> Resolved:
    """Settings from arguments, ``env``, the engine's configuration, a TOML file and defaults, in that precedence.

    A value of None among ``arguments`` or ``engine``, and an empty environment variable, is not set. The file is the
    one ``TAO_FLOWS_CONFIG`` names, else ``tao-flows.toml`` in ``cwd`` (default: the working directory), else
    ``tao-flows/config.toml`` in the user's configuration directory, else none.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, or a file that cannot be read.
    """
    here = cwd or _working_directory()
    places: list[tuple[str, Mapping[str, object], Path]] = [
        ("argument", arguments or {}, here),
        (ENVIRONMENT, {name: env.get(env_name(name)) or None for name in SETTINGS}, here),
        (engine_name or "engine", engine or {}, here),
    ]
    if (path := _config_file(env, here)) is not None:
        places.append((str(path), read_toml(path), path.parent))
    given: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")
    for origin, values, base in places:
        for name, value in parse_settings(origin, values, base).items():
            if name not in given:
                given[name], origins[name] = value, origin
    if "ledger" not in given:
        given["ledger"] = default_ledger(env)
    return Resolved(TaoConfig(**given), origins, tuple(_remarks(env)))


def parse_settings(origin: str, values: Mapping[str, object], base: Path | None = None) -> dict[str, Any]:
    """The settings in ``values``, checked; None is not set. Relative paths are relative to ``base``.

    Raises:
        ConfigError: an unknown key or a value of the wrong kind; the message names ``origin`` and the key.
    """
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in SETTINGS:
            raise ConfigError("UNKNOWN_SETTING", f"{origin}: unknown key {name!r}", did_you_mean(name, SETTINGS))
        if value is None:
            continue
        try:
            parsed[name] = SETTINGS[name].metadata["parse"](value, base or _working_directory())
        except InputError as error:
            where = env_name(name) if origin == ENVIRONMENT else f"{origin}: {name}"
            raise ConfigError(error.code, f"{where}: {error.summary}", error.remedy) from None
    return parsed


def _remarks(env: Mapping[str, str]) -> Iterator[str]:
    # Not an error: a later version may know the variable. Silence would hide a mistyped kill switch.
    known = {env_name(name): name for name in SETTINGS if env_name(name)} | {CONFIG_FILE_ENV: "config"}
    for variable in sorted(env):
        if variable.startswith(ENV_PREFIX) and variable not in known:
            nearest = nearest_word(variable[len(ENV_PREFIX) :], known.values(), cutoff=0.75)
            if nearest:
                yield f"{variable} is no setting; did you mean {ENV_PREFIX}{nearest.upper()}?"


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it has been removed
        return Path("/")


def _config_file(env: Mapping[str, str], cwd: Path) -> Path | None:
    return next((path for path, required in _candidates(env, cwd) if required or os.path.isfile(path)), None)


def _candidates(env: Mapping[str, str], cwd: Path) -> Iterator[tuple[Path, bool]]:
    """Files that may hold the settings, best first, and whether the file must be there."""
    if named := env.get(CONFIG_FILE_ENV):
        yield cwd / Path(named).expanduser(), True
        return
    yield cwd / LOCAL_CONFIG_FILE, False
    if (directory := _user_directory(env, "XDG_CONFIG_HOME", ".config")) is not None:
        yield directory / "config.toml", False


class ConfigWatcher:
    """Settings that follow their environment variables and file, so that mode ``off`` works without a redeploy.

    ``get()`` costs a few dozen dictionary look-ups and at most two ``stat`` calls while nothing has changed. Arguments
    are those of ``load_config``; the working directory is the one at construction. ``engine`` may also be a function
    that gives the engine's settings as they stand: it is asked at every look, and must answer at once.
    """

    def __init__(
        self,
        *,
        arguments: Mapping[str, object] | None = None,
        env: Mapping[str, str] = os.environ,
        engine: Mapping[str, object] | Callable[[], Mapping[str, object]] | None = None,
        engine_name: str = "",
        cwd: Path | None = None,
    ) -> None:
        self._env, self._cwd = env, cwd or _working_directory()
        self._engine = engine
        self._load = partial(load_config, arguments=arguments, env=env, engine_name=engine_name, cwd=self._cwd)
        self._looked_s = 0.0
        self._seen: object = None
        self._resolved: Resolved | None = None

    def get(self, max_age_s: float = 0.0) -> Resolved:
        """The settings as they stand. A change that cannot be read leaves the last ones standing, with a remark.

        Args:
            max_age_s: settings that were looked at this recently need not be looked at again.

        Raises:
            ConfigError: as ``load_config``, only while there are no earlier settings to keep.
        """
        now_s = time.monotonic()
        if self._resolved is not None and now_s - self._looked_s < max_age_s:
            return self._resolved
        self._looked_s = now_s
        engine = self._engine() if callable(self._engine) else self._engine
        seen = (self._fingerprint(), engine)
        if self._resolved is None or seen != self._seen:
            self._resolved = self._reload(self._resolved, engine)
            self._seen = seen
        return self._resolved

    def _reload(self, last: Resolved | None, engine: Mapping[str, object] | None) -> Resolved:
        try:
            return self._load(engine=engine)
        except ConfigError as error:
            if last is None:
                raise
            return Resolved(last.config, last.origins, (f"settings kept as they were: {error}",))

    def _fingerprint(self) -> object:
        values = tuple(self._env.get(variable) for variable in _WATCHED)
        return values, tuple(_file_state(path) for path, _ in _candidates(self._env, self._cwd))


_WATCHED: Final = (
    *(name for name in map(env_name, SETTINGS) if name),
    CONFIG_FILE_ENV,
    "HOME",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
)


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def mask_password(url: str) -> str:
    """A URL without its password, to be shown to people."""
    # Greedy up to the last "@": a password that should have been percent-encoded must not show in part.
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", url)
