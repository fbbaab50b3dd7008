"""What a pool of machines draws, from a Prometheus that already scrapes Kepler, DCGM-exporter or something else.

One instant query tells both the power and when its samples were taken, by the server's own clock, so that a clock
that is wrong here ages nothing. A series that has gone quiet, or cannot be told apart from one that has, makes the
whole pool unknown: the sum of what still answers would be a pool that draws less.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tao_flows.errors import ConfigError, SourceError
from tao_flows.figures import Quality
from tao_flows.units import NS_PER_S

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.parse import SplitResult

MAX_AGE: Final = "$max_age"
"""Stands for the longest age in a query of the user's own, as in ``sum(last_over_time(my_watts[$max_age]))``."""
MAX_ANSWER_BYTES: Final = 1 << 20

_MARK: Final = "tao_flows_part"
_SELECTOR: Final = re.compile(r'\s*[A-Za-z_:][\w:]*\s*(\{(?:[^"{}]|"(?:[^"\\]|\\.)*")*\})?\s*', re.ASCII)
_LABEL: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class Series(NamedTuple):
    """A metric that power can be had from."""

    metric: str
    per_unit: float
    """Watts, or joules of a counter, in one of its units."""
    counter: bool
    quality: Quality
    fixed: tuple[tuple[str, str, str], ...] = ()
    """Label, operator and value that choose the disjoint ones among its series."""


PRESETS: Final[Mapping[str, tuple[Series, ...]]] = {
    # Kepler from 0.10 on reads RAPL: psys contains the other zones, and core and uncore lie in their package. Before,
    # it had one figure for the platform, which is a model's where the machine has no meter of its own.
    "kepler": (
        Series("kepler_node_cpu_joules_total", 1.0, True, Quality.MEASURED, (("zone", "=~", "package|dram"),)),
        Series("kepler_node_platform_joules_total", 1.0, True, Quality.ESTIMATED),
    ),
    # The energy counter, in millijoules, sees what samples of the power miss on A100 and H100.
    "dcgm": (
        Series("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e-3, True, Quality.MEASURED),
        Series("DCGM_FI_DEV_POWER_USAGE", 1.0, False, Quality.MEASURED),
    ),
}
"""By name, the metrics to try in turn: the first that has series is used."""


@dataclass(frozen=True, slots=True)
class PoolPower:
    """What a pool draws, or why that is unknown."""

    power_w: float | None
    at_wall_ns: int | None = None
    """When the oldest of its samples was taken, by the server's clock; None where the query does not tell."""
    age_s: float | None = None
    """Seconds between that and the answer, by the server's clock."""
    source: str = ""
    series: int = 0
    """How many were added up."""
    quality: Quality = Quality.UNKNOWN
    code: str = ""
    summary: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        from tao_flows.clock import iso_from_ns

        return {
            "power_w": self.power_w,
            "quality": self.quality.value,
            "at": iso_from_ns(self.at_wall_ns),
            "age_s": self.age_s,
            "source": self.source,
            "series": self.series,
            "code": self.code,
            "summary": self.summary,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class PrometheusPower:
    """Reads a pool's power from a Prometheus server, or anything that answers its query API.

    Args:
        url: of the server, with a path if it has one, such as ``http://prometheus:9090``.
        query: PromQL that gives watts: a plain selector, or an expression whose ranges are ``[$max_age]``.
        preset: ``kepler`` or ``dcgm``, in place of a query.
        match: labels that the preset's series must have, such as ``{"instance": "node-1:9100"}``.
        timeout_s: the longest a read takes, name look-up aside.
        max_age_s: a sample older than this is not used. A counter's power is its slope (least squares) over this span,
            at least half of which it must have been scraped for.
        token_file: absolute path of a file with a bearer token, read anew each time.
        token_env: environment variable with a bearer token.

    Raises:
        ConfigError: BAD_POWER_SOURCE: an argument is wrong, or they do not go together.
    """

    url: str
    query: str = ""
    preset: str = ""
    match: Mapping[str, str] = field(default_factory=dict, hash=False)
    timeout_s: float = 5.0
    max_age_s: float = 120.0
    token_file: str = ""
    token_env: str = ""

    def __post_init__(self) -> None:
        where = _split(self.url)
        if bool(self.query.strip()) == bool(self.preset):
            raise _bad("give either a preset or a query", f"presets: {', '.join(PRESETS)}")
        if self.preset and self.preset not in PRESETS:
            raise _bad(f"{self.preset!r} is no preset", f"presets: {', '.join(PRESETS)}")
        if self.query and MAX_AGE not in self.query and not _SELECTOR.fullmatch(self.query):
            remedy = f"write its ranges as [{MAX_AGE}], as in sum(last_over_time(my_watts[{MAX_AGE}]))"
            raise _bad("an expression does not tell how old its samples are", remedy)
        if self.query and self.match:
            raise _bad("match goes with a preset", "write the labels into the query")
        for label, value in self.match.items():
            if not _LABEL.fullmatch(label) or not _is_text(value):
                raise _bad(f"match: {label!r} = {value!r} is no label with a text", 'write { instance = "..." }')
        if not (0 < self.timeout_s <= 60 and 1 <= self.max_age_s <= 86_400):
            raise _bad("timeout or max_age is out of range", "timeout: up to 60 s; max_age: from 1 s to a day")
        if self.token_file and (self.token_env or not os.path.isabs(self.token_file)):
            raise _bad("token_file is not an absolute path, or given besides token_env", "name one of the two")
        if (self.token_file or self.token_env) and where.scheme == "http" and where.hostname not in _LOOPBACK:
            raise _bad("the token would cross the network unencrypted", "use https")

    def read(self) -> PoolPower:
        """Asks the server. Never raises: what goes wrong is told by ``code`` and ``remedy``."""
        deadline = time.monotonic() + self.timeout_s
        power = PoolPower(None)
        for attempt in self._attempts():
            try:
                power = attempt.judge(_parts(self._ask(attempt.expression, deadline)), self.max_age_s)
            except SourceError as error:
                return attempt.unknown(error.code, error.summary, error.remedy)
            if power.code != "POWER_NO_SERIES":
                break
        return power

    def _attempts(self) -> list[_Attempt]:
        window = round(self.max_age_s * 1000)
        if self.preset:
            return [_Attempt.of_series(series, self.match, window) for series in PRESETS[self.preset]]
        if MAX_AGE in self.query:
            return [_Attempt("query", self.query.replace(MAX_AGE, f"{window}ms"), None, Quality.ESTIMATED)]
        return [_Attempt("query", self.query, self.query, Quality.ESTIMATED)]

    def _ask(self, expression: str, deadline: float) -> Any:
        from http.client import HTTPException
        from urllib.parse import urlencode

        target = f"{_split(self.url).path.rstrip('/')}/api/v1/query?{urlencode({'query': expression})}"
        try:
            status, body = _get(_split(self.url), target, self._headers(), deadline)
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
                raise SourceError("PROMETHEUS_TIMEOUT", f"{self.url}: no answer in time", "raise timeout") from None
            remedy = "check the url, the network and the certificate"
            raise SourceError("PROMETHEUS_UNREACHABLE", f"{self.url}: {error}", remedy) from None
        return _document(self.url, status, body)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "tao-flows"}
        if self.token_file or self.token_env:
            headers["Authorization"] = f"Bearer {self._token()}"
        return headers

    def _token(self) -> str:
        what = self.token_file or f"environment variable {self.token_env}"
        try:
            if self.token_file:
                with open(self.token_file, encoding="ascii") as file:
                    token = file.read(65_536).strip()
            else:
                token = os.environ.get(self.token_env, "").strip()
        except (OSError, ValueError) as error:
            raise SourceError("POWER_TOKEN", f"{what}: {error}", "make the token readable to this user") from None
        if not re.fullmatch(r"[!-~]+", token):
            raise SourceError("POWER_TOKEN", f"{what}: no token in it", "write the bearer token there")
        return token


class _Attempt(NamedTuple):
    """One query, and how to read its answer."""

    source: str
    power: str
    selector: str | None
    """What its samples' times can be asked of."""
    quality: Quality

    @classmethod
    def of_series(cls, series: Series, match: Mapping[str, str], window: int) -> _Attempt:
        labels = [*series.fixed, *((label, "=", value) for label, value in match.items())]
        selector = f"{series.metric}{{{','.join(f'{name}{op}{_quoted(value)}' for name, op, value in labels)}}}"
        # The slope, not rate(), which spreads what little a new series has over the whole span. A series that has ended
        # is in a range for a while yet, and a counter that was reset has no slope: both are left out.
        slope = (
            f"deriv({selector}[{window}ms]) and {selector} and {selector} offset {window // 2}ms"
            f" unless resets({selector}[{window}ms]) > 0"
        )
        power = f"({slope if series.counter else selector}) * {series.per_unit:g}"
        return cls(series.metric, power, selector, series.quality)

    @property
    def expression(self) -> str:
        """Both questions in one, so that both are answered for the same moment."""
        power = _marked(self.power, "power")
        return power if self.selector is None else f"{power} or {_marked(f'timestamp({self.selector})', 'at')}"

    def judge(self, answer: dict[str, list[tuple[float, float]]], max_age_s: float) -> PoolPower:
        """The sum of the powers, unless any of them is missing, stale or no power."""
        powers, times = answer["power"], answer["at"]
        if not powers and not times:
            remedy = "see that the exporter is scraped, and that the labels in match are its own"
            return self.unknown("POWER_NO_SERIES", f"{self.source}: no such series", remedy)
        oldest_s = min((at for _, at in times), default=None)
        age_s = None if oldest_s is None else max(asked - at for asked, at in times)
        at_ns = None if oldest_s is None else round(oldest_s * NS_PER_S)
        if age_s is not None and age_s > max_age_s:
            summary = f"{self.source}: the oldest of {len(times)} samples is {age_s:.0f} s old"
            return self.unknown("POWER_STALE", summary, "see that its exporter runs, or raise max_age", at_ns, age_s)
        if self.selector is not None and len(powers) != len(times):
            steady = f"have counted without a break for half of {max_age_s:g} s"
            summary = f"{self.source}: {len(powers)} of {len(times)} series {steady}"
            return self.unknown("POWER_TOO_FEW_SAMPLES", summary, "wait, or raise max_age", at_ns, age_s)
        total_w = sum(watts for _, watts in powers)
        if not all(math.isfinite(watts) and watts >= 0 for _, watts in powers) or not math.isfinite(total_w):
            return self.unknown("POWER_RUBBISH", f"{self.source}: not a power", "look at the query", at_ns, age_s)
        return PoolPower(total_w, at_ns, age_s, self.source, len(powers), self.quality)

    def unknown(
        self, code: str, summary: str, remedy: str, at_wall_ns: int | None = None, age_s: float | None = None
    ) -> PoolPower:
        return PoolPower(None, at_wall_ns, age_s, self.source, 0, Quality.UNKNOWN, code, summary, remedy)


def _marked(expression: str, part: str) -> str:
    return f'label_replace({expression}, "{_MARK}", "{part}", "", "")'


def _quoted(value: str) -> str:
    """A PromQL string: JSON's escapes of quotes, backslashes and control characters are Go's too."""
    return json.dumps(value, ensure_ascii=False)


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _bad(summary: str, remedy: str) -> ConfigError:
    return ConfigError("BAD_POWER_SOURCE", summary, remedy)


def _split(url: str) -> SplitResult:
    from urllib.parse import urlsplit

    remedy = 'write "http://HOST:PORT" or "https://HOST", without a user, a query or a fragment'
    try:
        where = urlsplit(url)
        usable = where.scheme in {"http", "https"} and where.hostname and where.port != 0 and where.username is None
    except ValueError:
        raise _bad(f"{url.rpartition('@')[2]!r} is no address", remedy) from None
    if not usable or where.query or where.fragment or not re.fullmatch(r"[!-~]+", url):
        raise _bad(f"{url.rpartition('@')[2]!r} is no address of a Prometheus server", remedy)
    return where


def _get(where: SplitResult, target: str, headers: Mapping[str, str], deadline: float) -> tuple[int, bytes]:
    """Status and body. Follows no redirection and no proxy: a token goes to the host it was given for."""
    import socket
    import threading
    from http.client import HTTPConnection, HTTPSConnection

    kind = HTTPSConnection if where.scheme == "https" else HTTPConnection  # which checks the certificate
    connection = kind(where.hostname or "", where.port, timeout=_left(deadline))

    def hang_up() -> None:
        with suppress(OSError):
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)

    # A server that sends a byte at a time never meets the socket's own time-out.
    watch = threading.Timer(_left(deadline), hang_up)
    watch.daemon = True
    watch.start()
    try:
        connection.request("GET", target, headers=dict(headers))
        response = connection.getresponse()
        return response.status, _body(response, deadline)
    finally:
        watch.cancel()
        connection.close()


def _body(response: HTTPResponse, deadline: float) -> bytes:
    body = bytearray()
    while chunk := response.read1(65_536):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes of answer")
    _left(deadline)  # cut short, it ends like a whole one
    return bytes(body)


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _document(url: str, status: int, body: bytes) -> Any:
    if status in {401, 403}:
        raise SourceError("PROMETHEUS_DENIED", f"{url}: HTTP {status}", "give a token with token_file or token_env")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and document.get("status") == "error":
        summary = f"{url}: {document.get('errorType')}: {document.get('error')}"
        raise SourceError("PROMETHEUS_REFUSED", " ".join(summary.split())[:500], "correct the query")
    if status != 200 or not isinstance(document, dict):
        summary = f"{url}: HTTP {status}, and no answer of a query"
        raise SourceError("PROMETHEUS_RUBBISH", summary, "see that the url is that of a Prometheus server")
    return document


def _parts(document: Any) -> dict[str, list[tuple[float, float]]]:
    """By part, the time of the answer and the value of each series.

    Raises:
        SourceError: PROMETHEUS_RUBBISH: the answer has another form.
    """
    parts: dict[str, list[tuple[float, float]]] = {"power": [], "at": []}
    try:
        for row in document["data"]["result"]:
            asked, value = row["value"]
            parts[row["metric"][_MARK]].append((float(asked), float(value)))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SourceError(
            "PROMETHEUS_RUBBISH", "an answer of another form", "see that the query gives a vector"
        ) from None
    return parts
