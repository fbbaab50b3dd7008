"""``tao-flows seal``: bundles of runs that have ended, made where no user code runs."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from tao_flows.cli._console import complain, fail, print_json, stderr
from tao_flows.cli.report import one_run, reconciled
from tao_flows.clock import iso_from_ns
from tao_flows.config import TaoConfig, load_config
from tao_flows.errors import BundleError, InputError, LedgerError, TaoError
from tao_flows.governance.documents import run_json
from tao_flows.governance.sealer import Sealer
from tao_flows.governance.sealing import sealer_of
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.runpages import ref_of
from tao_flows.ledger.seals import last_seal
from tao_flows.records import Incident, RunRecord
from tao_flows.telemetry.procfs import is_alive
from tao_flows.units import parse_duration_s

SCHEMA = "tao-flows/seal/1"
_EVERY = "5s"


def seal_command(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN|latest", help="A run's id, name, or flow/run: sealed as it stands now.")
    ] = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", help="Seal every run of the ledger after its end, until SIGTERM.")
    ] = False,
    every: Annotated[
        str | None, typer.Option(metavar="DURATION", help=f"Of --follow: time between two looks; {_EVERY} by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where bundles go; TAO_FLOWS_BUNDLES by default.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON, and nothing else; with --follow a line for each bundle.")
    ] = False,
) -> None:
    """Write the signed record of a run: a bundle that `tao-flows verify` checks offline."""
    try:
        if follow == (run is not None):
            raise InputError("BAD_USAGE", "seal takes either RUN or --follow", "tao-flows seal latest")
        if every is not None and not follow:
            raise InputError("BAD_USAGE", "--every is for --follow", "leave it out")
        config = load_config(arguments={"bundles": out}).config
        with closing(open_ledger(config.ledger)) as ledger:
            sealer = sealer_of(config, ledger, "seal", note=_Notes(ledger))
            _warn(config)
            if follow:
                _follow(ledger, sealer, parse_duration_s(every or _EVERY, what="--every"), as_json=as_json)
            else:
                _seal(ledger, sealer, run or "latest", as_json=as_json)
    except TaoError as error:
        fail(error)


class _Notes:
    """Says what failed on standard error, the same once, and keeps it in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._said: set[str] = set()

    def __call__(self, doing: str, error: BaseException) -> None:
        ours = isinstance(error, TaoError)
        code = error.code if isinstance(error, TaoError) else "INTERNAL"
        summary = f"{doing}: {error.summary if isinstance(error, TaoError) else f'{type(error).__name__}: {error}'}"
        if summary in self._said:
            return
        self._said.add(summary)
        remedy = getattr(error, "remedy", "") if ours else ""
        complain(InputError(code, summary, remedy))
        with suppress(LedgerError):
            self._ledger.put_incident(Incident(code, summary, remedy, time.time_ns()))


def _warn(config: TaoConfig) -> None:
    if config.signing_key is None:
        stderr().print(
            "note: no signing key is set (TAO_FLOWS_SIGNING_KEY): bundles are written unsigned, and never verify",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _seal(ledger: Ledger, sealer: Sealer, name: str, *, as_json: bool) -> None:
    found = one_run(reconciled(ledger), name)
    try:
        sealer.seal(ref_of(found))
    except BundleError as error:
        complain(error)
        raise typer.Exit(1) from None
    except OSError as error:
        raise InputError(
            "UNWRITABLE", f"{error.filename}: {error.strerror}", "see that this process may write"
        ) from None
    document = _document(ledger, found)
    if as_json:
        print_json(document)
    else:
        print(_line(document))


def _follow(ledger: Ledger, sealer: Sealer, every_s: float, *, as_json: bool) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    print("tao-flows seal: ready", file=sys.stderr, flush=True)
    while not stop.is_set():
        with suppress(LedgerError):  # look says so
            ledger.reconcile(is_alive)
        for run in sealer.look():
            with suppress(TaoError):
                document = _document(ledger, run)
                print(json.dumps(document) if as_json else _line(document), flush=True)
        stop.wait(every_s)


def _document(ledger: Ledger, run: RunRecord) -> dict[str, Any]:
    ref: RunRef = ref_of(run)
    seal = last_seal(ledger, ref)
    if seal is None:
        raise InputError("NOT_SEALED", f"the ledger has no seal of run {run.run_id}", "seal it again")
    return {
        "schema": SCHEMA,
        "run": run_json(run),
        "bundle": seal.place,
        "revision": seal.revision,
        "digest": seal.digest,
        "chain": {"size": seal.size, "head": seal.head},
        "keyid": seal.keyid or None,
        "signer": seal.signer,
        "complete": seal.complete,
        "sealed": iso_from_ns(seal.sealed_wall_ns),
    }


def _line(document: dict[str, Any]) -> str:
    whole = "complete" if document["complete"] else "incomplete: run.json says what is missing"
    signed = "" if document["keyid"] else ", unsigned"
    return f"{document['bundle']}  sha256:{document['digest']}  {whole}{signed}"
