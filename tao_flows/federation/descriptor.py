"""A pool as its organisation describes it to others. All figures in it are that organisation's claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tao_flows.controller.fields import Fields, as_count
from tao_flows.controller.model import PredictedEnergy, PredictedRuntime, iso
from tao_flows.errors import InputError
from tao_flows.federation.documents import MALFORMED, optional_text, org, reading, refused, schema_is, text, whole
from tao_flows.governance.canonical import canonical, parse
from tao_flows.partners import address, pool_at
from tao_flows.pools import WorkerPool

SCHEMA: Final = "tao-flows/pool-descriptor/1"
PAYLOAD_TYPE: Final = "application/vnd.tao-flows.pool-descriptor+json"
ENGINES: Final = ("airflow", "prefect")
CLAIMED: Final = ("pue", "carbon", "energy_j", "runtime_s", "power_w", "price_per_h", "queue_wait_s", "capacity")
"""What of a partner's pool nobody here has measured."""
CLOCK_S: Final = 60.0
"""An offer holds from so long before it is made: a partner's clock may be behind."""
_FIELDS: Final = (
    "schema", "org", "pool_id", "seq", "valid_from", "valid_until", "endpoint", "capacity", "zone", "capabilities",
    "pue", "carbon", "energy_j", "runtime_s", "power_w", "price_per_h", "queue_wait_s", "dispatch_energy_j",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where work for the pool is sent: a deployment of a Prefect server, or a DAG of an Airflow deployment.

    The address says where the offer stands. It is connected to only where our own settings name the same one.
    """

    engine: str
    api_url: str
    flow: str
    """The flow's name, or the DAG's id: what work of that name is done there."""
    deployment: str = ""
    """The Prefect deployment's name; empty for a DAG."""

    def to_json(self) -> dict[str, Any]:
        """As the descriptor has it."""
        named = (
            {"flow": self.flow, "deployment": self.deployment} if self.engine == "prefect" else {"dag_id": self.flow}
        )
        return {"engine": self.engine, "api_url": self.api_url, **named}


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure and what its organisation says it has it from."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One signed offer. None: not said."""

    org: str
    pool_id: str
    seq: int
    """Grows from offer to offer: one that is lower than what was seen is an old one played back."""
    valid_from: datetime
    valid_until: datetime
    endpoint: Endpoint
    pue: Claim
    zone: str | None = None
    carbon: Claim | None = None
    """Grams a kWh, where no signal of our own tells of the zone."""
    capacity: int | None = None
    """Runs that may be there at a time."""
    capabilities: tuple[str, ...] = ()
    energy_j: PredictedEnergy | None = None
    runtime_s: PredictedRuntime | None = None
    power_w: float | None = None
    price_per_h: float | None = None
    queue_wait_s: float = 0.0
    dispatch_energy_j: float = 0.0

    @property
    def id(self) -> str:
        """What the pool is called among ours."""
        return pool_at(self.pool_id, self.org)

    def check_time(self, now: datetime) -> None:
        """Refuses an offer that does not hold now.

        Raises:
            InputError: PARTNER_EXPIRED or PARTNER_NOT_YET_VALID.
        """
        if now >= self.valid_until:
            raise refused("PARTNER_EXPIRED", f"the descriptor of {self.id} ended on {iso(self.valid_until)}")
        if now < self.valid_from:
            summary = f"the descriptor of {self.id} begins on {iso(self.valid_from)}"
            raise refused("PARTNER_NOT_YET_VALID", summary, "check this host's clock, or wait")

    def to_pool(self) -> WorkerPool:
        """The pool as decisions know it."""
        return WorkerPool(
            pool_id=self.id,
            zone=self.zone,
            capabilities=self.capabilities,
            pue=self.pue.value,
            price_per_h=self.price_per_h,
            power_w=self.power_w,
            places=self.capacity,
            dispatch_energy_j=self.dispatch_energy_j,
            queue_wait_s=self.queue_wait_s,
            energy_j=self.energy_j,
            runtime_s=self.runtime_s,
            org=self.org,
            claimed_g_per_kwh=None if self.carbon is None else self.carbon.value,
        )

    def to_payload(self) -> bytes:
        """The canonical JSON that is signed; ``read_descriptor`` gives the same descriptor again."""
        energy, runtime = self.energy_j, self.runtime_s
        given: dict[str, Any] = {
            "schema": SCHEMA,
            "org": self.org,
            "pool_id": self.pool_id,
            "seq": str(self.seq),
            "valid_from": iso(self.valid_from),
            "valid_until": iso(self.valid_until),
            "endpoint": self.endpoint.to_json(),
            "pue": {"value": self.pue.value, "source": self.pue.source},
            "zone": self.zone,
            "carbon": None if self.carbon is None else {"g_per_kwh": self.carbon.value, "source": self.carbon.source},
            "capacity": self.capacity,
            "capabilities": list(self.capabilities),
            "energy_j": None if energy is None else {"low": energy.low, "mean": energy.mean, "high": energy.high},
            "runtime_s": None if runtime is None else {"p50": runtime.p50, "p95": runtime.p95},
            "power_w": self.power_w,
            "price_per_h": self.price_per_h,
            "queue_wait_s": self.queue_wait_s,
            "dispatch_energy_j": self.dispatch_energy_j,
        }
        return canonical(given)


def read_descriptor(payload: bytes) -> Descriptor:
    """The descriptor of a payload whose signature has been verified.

    Raises:
        InputError: PARTNER_MALFORMED, it is no such document, or a field of it is unknown, missing or wrong.
    """
    with reading("a pool descriptor"):
        fields = Fields(parse(payload), "", _FIELDS)
        schema_is(fields, SCHEMA)
        found = Descriptor(
            org=org(fields, "org"),
            pool_id=_pool_id(fields),
            seq=whole(fields, "seq"),
            valid_from=fields.moment("valid_from"),
            valid_until=fields.moment("valid_until"),
            endpoint=_endpoint(fields),
            pue=_claim(fields.raw("pue"), "pue", "value", 1.0),
            zone=optional_text(fields, "zone"),
            carbon=None
            if fields.optional("carbon") is None
            else _claim(fields.raw("carbon"), "carbon", "g_per_kwh", 0),
            capacity=_capacity(fields),
            capabilities=fields.texts("capabilities") or (),
            energy_j=_energy(fields),
            runtime_s=_runtime(fields),
            power_w=fields.optional_number("power_w", "watts"),
            price_per_h=fields.optional_number("price_per_h", "a price"),
            queue_wait_s=fields.number("queue_wait_s", "seconds", default=0.0),
            dispatch_energy_j=fields.number("dispatch_energy_j", "joules", default=0.0),
        )
    if found.valid_until <= found.valid_from:
        raise refused(MALFORMED, "a pool descriptor: valid_until is not after valid_from")
    if found.carbon is not None and found.zone is None:
        raise refused(MALFORMED, "a pool descriptor: a carbon intensity is claimed of no zone")
    return found


def _pool_id(fields: Fields) -> str:
    value = text(fields, "pool_id")
    if "@" in value:
        raise refused(MALFORMED, f"pool_id: {value!r} holds an @, which stands between a pool and an organisation")
    return value


def _endpoint(fields: Fields) -> Endpoint:
    where = Fields(fields.raw("endpoint"), "endpoint", ("engine", "api_url", "flow", "deployment", "dag_id"))
    engine = where.text("engine")
    try:
        api_url = address(text(where, "api_url"))
    except InputError as error:
        raise refused(MALFORMED, f"endpoint.api_url: {error.summary}") from None
    if engine == "prefect":
        Fields(fields.raw("endpoint"), "endpoint", ("engine", "api_url", "flow", "deployment"))
        return Endpoint(engine, api_url, text(where, "flow"), text(where, "deployment"))
    if engine == "airflow":
        Fields(fields.raw("endpoint"), "endpoint", ("engine", "api_url", "dag_id"))
        return Endpoint(engine, api_url, text(where, "dag_id"))
    raise refused(MALFORMED, f"endpoint.engine: {engine[:40]!r} is not one of {', '.join(ENGINES)}")


def _claim(value: object, path: str, name: str, least: float) -> Claim:
    fields = Fields(value, path, (name, "source"))
    unit = "a ratio" if path == "pue" else "grams a kWh"
    return Claim(fields.number(name, unit, least=least), text(fields, "source"))


def _capacity(fields: Fields) -> int | None:
    value = fields.optional("capacity")
    if value is None:
        return None
    capacity = as_count(value, "capacity")
    if capacity < 1:
        raise refused(MALFORMED, "capacity: 0 is no offer")
    return capacity


def _energy(fields: Fields) -> PredictedEnergy | None:
    value = fields.optional("energy_j")
    if value is None:
        return None
    given = _rising(Fields(value, "energy_j", ("low", "mean", "high")), ("low", "mean", "high"), "joules")
    return PredictedEnergy(**given)


def _runtime(fields: Fields) -> PredictedRuntime | None:
    value = fields.optional("runtime_s")
    if value is None:
        return None
    return PredictedRuntime(**_rising(Fields(value, "runtime_s", ("p50", "p95")), ("p50", "p95"), "seconds"))


def _rising(fields: Fields, names: tuple[str, ...], unit: str) -> Mapping[str, float]:
    given = {name: fields.number(name, unit) for name in names}
    if sorted(given.values()) != list(given.values()):
        raise refused(MALFORMED, f"{fields.path}: {', '.join(names)} do not rise")
    return given
