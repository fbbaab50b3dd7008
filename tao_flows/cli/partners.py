"""``tao-flows pools publish|trust|fetch``: what other organisations may know and say of pools, runs and their energy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tao_flows.cli._console import complain, fail, print_json, stderr, stdout
from tao_flows.config import TaoConfig, load_config
from tao_flows.controller.fields import as_moment
from tao_flows.controller.model import iso
from tao_flows.errors import ConfigError, InputError, LedgerError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.pools import PoolStore
from tao_flows.partners import org_name
from tao_flows.pools import WorkerPool, load_pools, merge_pools
from tao_flows.report.text import count, plain
from tao_flows.units import parse_duration_s

if TYPE_CHECKING:
    from tao_flows.federation.descriptor import Descriptor, Endpoint
    from tao_flows.federation.offers import Offer
    from tao_flows.federation.publish import Publisher
    from tao_flows.federation.trust import Trust
    from tao_flows.ledger.base import Ledger

_REFUSED = 1
_EVERY_S = 5.0

_Json = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]
_Key = Annotated[Path | None, typer.Option("--key", help="signing.key; default: TAO_FLOWS_SIGNING_KEY.")]


def publish_command(
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="A pool to offer to partners.")] = None,
    out: Annotated[
        Path, typer.Option("--out", help="The directory that partners read, or a web server serves.")
    ] = Path("tao-flows-published"),
    key: _Key = None,
    to: Annotated[str, typer.Option("--to", help="prefect:FLOW/DEPLOYMENT or airflow:DAG that does the work.")] = "",
    api_url: Annotated[str, typer.Option("--api-url", help="The address of the API it is reached by.")] = "",
    pue_source: Annotated[str, typer.Option("--pue-source", help="What the pool's PUE is known from.")] = "",
    carbon: Annotated[float | None, typer.Option("--carbon", help="Grams a kWh that you claim.")] = None,
    carbon_source: Annotated[str, typer.Option("--carbon-source", help="What that is known from.")] = "",
    valid_for: Annotated[str, typer.Option("--valid-for", help="How long the offer holds.")] = "7d",
    follow: Annotated[bool, typer.Option("--follow", help="Go on publishing records until SIGTERM.")] = False,
    as_json: _Json = False,
) -> None:
    """Publish a pool's signed descriptor; and always the heads of bundles, and records of runs that partners sent."""
    from tao_flows.federation.publish import Publisher

    try:
        config = load_config().config
        publisher = Publisher(_own(config), _signing_key(key, config), out)
        with _ledger(config) as ledger:
            offered: Sequence[Descriptor] = ()
            if pool is not None:
                endpoint = _endpoint(to, api_url)
                claims = (_source(pue_source, "--pue-source"), carbon, carbon_source)
                offered = publisher.pools(
                    [_descriptor(_described(config, ledger, pool), config, endpoint, claims, valid_for)]
                )
            records = _publish_runs(publisher, ledger, config)
            if as_json:
                print_json({"pools": [each.pool_id for each in offered], "records": records, "out": str(out)})
            else:
                said = [f"offers {', '.join(plain(each.pool_id) for each in offered)}"] if offered else []
                stdout().print("; ".join([*said, f"{count(records, 'new record')} in {out}"]), markup=False)
            while follow:
                time.sleep(_EVERY_S)
                _follow(publisher, ledger, config)
    except TaoError as error:
        fail(error)


def trust_command(
    org: Annotated[str | None, typer.Argument(metavar="[ORG]", help="Another organisation.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its signing.pub, which you have from it.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="When the key ends, ISO 8601 with a zone.")] = None,
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="KEYID", help="Trust this key no more.")] = None,
    as_json: _Json = False,
) -> None:
    """List whose keys are trusted, trust one more, or revoke one."""
    from tao_flows.federation.trust import TrustedKey, load_trust
    from tao_flows.governance.keys import VerifyKey

    now = datetime.now(timezone.utc)
    try:
        path = load_config().config.trust
        trust = load_trust(path)
        if org is not None:
            if path is None:
                raise ConfigError("NO_TRUST", "the settings name no file of trust", 'set trust = "trust.json"')
            if (key is None) == (revoke is None):
                raise InputError("BAD_USAGE", "neither a key nor a revocation, or both", "give --key or --revoke")
            if revoke is not None:
                trust = trust.revoked(org_name(org), revoke, now)
            elif key is not None:
                ends = None if until is None else as_moment(until, "--until")
                trust = trust.with_key(TrustedKey(org_name(org), VerifyKey.load(key), now, ends))
            trust.save(path)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"path": None if path is None else str(path), "keys": _keys(trust, now)})
        return
    for each in _keys(trust, now):
        stdout().print(f"{each['org']}  {each['keyid'][:16]}  {each['standing']}", markup=False, highlight=False)
    if not trust.keys:
        stderr().print("no organisation is trusted", markup=False)


def fetch_command(
    org: Annotated[str | None, typer.Argument(metavar="[ORG]", help="One partner; default: all.")] = None,
    anchors: Annotated[
        Path | None, typer.Option("--anchors", metavar="DIR", help="Keep their heads there too, for verify --anchor.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Take what partners publish now: descriptors and heads. Ends with 1 if anything is refused or not to be had."""
    from tao_flows.federation.store import PartnerStore
    from tao_flows.federation.trust import load_trust

    try:
        config = load_config().config
        if org is not None and org not in config.partners:
            raise InputError("UNKNOWN_PARTNER", f"the settings name no partner {org!r}", f"write [partners.{org}]")
        trust = load_trust(config.trust)
        with _ledger(config) as ledger:
            store = PartnerStore(ledger)
            rows = [_fetched(config, name, trust, store) for name in sorted(config.partners) if org in (None, name)]
            _collect(config, ledger)
            if anchors is not None:
                _anchor([row["org"] for row in rows], store, anchors)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"schema": "tao-flows/fetched/1", "partners": rows})
    else:
        for row in rows:
            _say(row)
    if any(row["refused"] for row in rows):
        raise typer.Exit(_REFUSED)


def partner_rows(config: TaoConfig) -> list[dict[str, Any]]:
    """Partners' pools as ``pools ls`` shows them, each with why it is not used where it is not; none that is unread."""
    from tao_flows.federation.offers import offers
    from tao_flows.federation.store import PartnerStore

    if config.trust is None and not config.partners:
        return []
    try:
        with _ledger(config) as ledger:
            return [_row(each) for each in offers(config, PartnerStore(ledger), datetime.now(timezone.utc))]
    except (ConfigError, LedgerError) as error:
        complain(error)
        return []


def show_partners(rows: Sequence[Mapping[str, Any]]) -> None:
    """Partners' pools, in words: every figure is theirs to claim."""
    for row in rows:
        standing = f"refused: {row['refused']['summary']} [{row['refused']['code']}]" if row["refused"] else "trusted"
        until = "" if row["valid_until"] is None else f", until {row['valid_until']}"
        pue = "" if row["pue"] is None else f", claims PUE {row['pue']['value']:g} ({row['pue']['source']})"
        stdout().print(plain(f"{row['pool_id']}  {standing}{until}{pue}"), markup=False, highlight=False)


def _row(offer: Offer) -> dict[str, Any]:
    told = offer.descriptor
    return {
        "pool_id": offer.pool_id,
        "org": offer.org,
        "usable": offer.usable,
        "refused": None if offer.refusal is None else _error(offer.refusal),
        "seq": None if told is None else told.seq,
        "valid_until": None if told is None else iso(told.valid_until),
        "zone": None if told is None else told.zone,
        "endpoint": None if told is None else told.endpoint.to_json(),
        "pue": None if told is None else asdict(told.pue),
        "carbon": None if told is None or told.carbon is None else asdict(told.carbon),
        "claims": True,
    }


def _fetched(config: TaoConfig, org: str, trust: Trust, store: Any) -> dict[str, Any]:
    from tao_flows.federation.fetch import NOT_THERE
    from tao_flows.federation.heads import fetch_heads
    from tao_flows.federation.offers import fetch_offers

    spec, now = config.partners[org], datetime.now(timezone.utc)
    found: list[Offer] = []
    refused: list[dict[str, str]] = []
    heads = 0
    try:
        found = fetch_offers(spec, trust, store, now)
        refused += [_error(each.refusal) for each in found if each.refusal is not None]
    except TaoError as error:
        if isinstance(error, LedgerError):
            raise
        refused.append(_error(error))
    try:
        heads = fetch_heads(spec, trust, store, now)
    except TaoError as error:
        if isinstance(error, LedgerError):
            raise
        if error.code != NOT_THERE:  # who seals no bundles has none
            refused.append(_error(error))
    return {"org": org, "pools": [each.pool_id for each in found if each.usable], "heads": heads, "refused": refused}


def _collect(config: TaoConfig, ledger: Ledger) -> None:
    """Accounts for runs at partners whose records were not there when the runs ended."""
    from tao_flows.clock import SystemClock
    from tao_flows.federation.claims import Claims
    from tao_flows.ledger.safe import SafeLedger
    from tao_flows.runtime import Incidents

    incidents = Incidents(SystemClock())
    incidents.ledger = SafeLedger(ledger, incidents.note_failure)
    Claims(ledger, SystemClock(), incidents).collect(config)


def _anchor(orgs: Sequence[str], store: Any, directory: Path) -> None:
    """One file an organisation, ``ORG.jsonl``: a later word of theirs that differs is refused there, too."""
    from tao_flows.federation.heads import anchors_of
    from tao_flows.governance.anchors import add_anchors

    directory.mkdir(parents=True, exist_ok=True)
    for org in orgs:
        add_anchors(directory / f"{org}.jsonl", anchors_of(store, org, datetime.now(timezone.utc)))


def _say(row: Mapping[str, Any]) -> None:
    pools = ", ".join(map(plain, row["pools"])) or "no pool"
    stdout().print(f"{row['org']}: {pools}; {count(row['heads'], 'head')}", markup=False, highlight=False)
    for refusal in row["refused"]:
        stderr().print(f"  refused: {refusal['summary']} [{refusal['code']}]", markup=False, highlight=False)


def _follow(publisher: Publisher, ledger: Ledger, config: TaoConfig) -> None:
    """One more round. Who has sent us new runs is asked for its heads, so that both sides have the other's."""
    from tao_flows.federation.store import PartnerStore
    from tao_flows.federation.trust import load_trust

    try:
        if _publish_runs(publisher, ledger, config):
            trust, store = load_trust(config.trust), PartnerStore(ledger)
            for org in config.partners:
                for refusal in _fetched(config, org, trust, store)["refused"]:
                    stderr().print(f"{org}: {refusal['summary']} [{refusal['code']}]", markup=False)
    except TaoError as error:  # the next round may do better
        complain(error)


def _publish_runs(publisher: Publisher, ledger: Ledger, config: TaoConfig) -> int:
    from tao_flows.federation.publish import publish_runs

    sealed = config.bundles is not None
    return publish_runs(publisher, ledger, config.namespace, datetime.now(timezone.utc), sealed=sealed)


def _descriptor(
    pool: WorkerPool, config: TaoConfig, endpoint: Endpoint, claims: tuple[str, float | None, str], valid_for: str
) -> Descriptor:
    from tao_flows.federation.descriptor import CLOCK_S, Claim, Descriptor, read_descriptor
    from tao_flows.federation.records import age_of

    now = datetime.now(timezone.utc)
    pue_source, carbon, carbon_source = claims
    made = Descriptor(
        org=_own(config),
        pool_id=pool.pool_id,
        seq=age_of(now),
        valid_from=now - timedelta(seconds=CLOCK_S),
        valid_until=now + timedelta(seconds=parse_duration_s(valid_for, what="--valid-for")),
        endpoint=endpoint,
        pue=Claim(pool.pue, pue_source),
        zone=pool.zone,
        carbon=None if carbon is None else Claim(carbon, _source(carbon_source, "--carbon-source")),
        capacity=pool.places,
        capabilities=pool.capabilities,
        energy_j=pool.energy_j,
        runtime_s=pool.runtime_s,
        power_w=pool.power_w,
        price_per_h=pool.price_per_h,
        queue_wait_s=pool.queue_wait_s,
        dispatch_energy_j=pool.dispatch_energy_j,
    )
    return read_descriptor(made.to_payload())  # what a partner would refuse is not published


def _endpoint(to: str, api_url: str) -> Endpoint:
    from tao_flows.federation.descriptor import Endpoint
    from tao_flows.partners import address

    engine, _, name = to.partition(":")
    flow, _, deployment = name.partition("/") if engine == "prefect" else (name, "", "")
    if engine not in {"prefect", "airflow"} or not flow or (engine == "prefect") != bool(deployment):
        remedy = "write --to prefect:FLOW/DEPLOYMENT or --to airflow:DAG, and --api-url"
        raise InputError("BAD_USAGE", f"{to!r} names no work", remedy)
    return Endpoint(engine, address(api_url), flow, deployment)


def _described(config: TaoConfig, ledger: Ledger, pool_id: str) -> WorkerPool:
    pools = merge_pools(() if config.pools is None else load_pools(config.pools), PoolStore(ledger).all())
    found = next((pool for pool in pools if pool.pool_id == pool_id), None)
    if found is None:
        known = ", ".join(pool.pool_id for pool in pools) or "none"
        raise InputError("UNKNOWN_POOL", f"no pool {pool_id!r} is described", f"those that are: {known}")
    return found


def _source(text: str, option: str) -> str:
    if not text:
        raise InputError("BAD_USAGE", f"{option} is missing", "say what the figure is known from: it is a claim")
    return text


def _own(config: TaoConfig) -> str:
    if not config.org:
        raise ConfigError("NO_ORG", "the settings do not say what organisation this is", 'set org = "NAME"')
    return config.org


def _signing_key(key: Path | None, config: TaoConfig) -> Any:
    from tao_flows.governance.keys import SigningKey

    path = key or config.signing_key
    if path is None:
        raise ConfigError("NO_KEY", "there is no key to sign with", "give --key, or set TAO_FLOWS_SIGNING_KEY")
    return SigningKey.load(path)


def _keys(trust: Trust, now: datetime) -> list[dict[str, Any]]:
    def standing(each: Any) -> str:
        try:
            each.check(now)
        except InputError as error:
            return f"not trusted: {error.summary}"
        return "trusted" + ("" if each.valid_until is None else f" until {iso(each.valid_until)}")

    return [
        {"org": each.org, "keyid": each.key.keyid, "standing": standing(each), **each.to_json()} for each in trust.keys
    ]


def _error(error: TaoError) -> dict[str, str]:
    return {"code": error.code, "summary": error.summary, "remedy": error.remedy}


@contextmanager
def _ledger(config: TaoConfig) -> Iterator[Ledger]:
    ledger = open_ledger(config.ledger)
    try:
        yield ledger
    finally:
        ledger.close()
