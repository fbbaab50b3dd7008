"""``tao-flows aggregate``: the evidence on a model, over all of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stdout
from tao_flows.cli.report import since_ns
from tao_flows.clock import SystemClock
from tao_flows.config import load_config
from tao_flows.errors import InputError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.report.text import count, plain


def aggregate_command(
    model_id: Annotated[str, typer.Option("--model-id", metavar="M", help="The model, as its runs name it.")],
    *,
    since: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Runs of the last 90d, ...; all by default.")
    ] = None,
    bundles: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Verify the runs' bundles there, and compare their energies.")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", metavar="PUB", help="A public key that bundles may be signed with.")
    ] = None,
    provider: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What only the provider knows, as YAML.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Sum the evidence for Annex XI over the runs of a model, and show which are covered.

    Exits with 1 where a bundle is refused or says another energy than the ledger.
    """
    try:
        document = _document(model_id, since, bundles, key or [], provider)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json(document)
    else:
        _show(document)
    found = document["covers"]["bundles"]
    raise typer.Exit(1 if found and found["refused"] + found["differing"] else 0)


def _document(
    model_id: str, since: str | None, bundles: Path | None, keys: list[Path], provider: Path | None
) -> dict[str, Any]:
    from tao_flows.governance.aggregate import model_support
    from tao_flows.governance.held import Bundles
    from tao_flows.governance.keys import VerifyKey
    from tao_flows.governance.provider import load_provider_inputs

    if (bundles is None) != (not keys):
        raise InputError("BAD_USAGE", "--bundles and --key go together", "give both, or neither")
    since_wall_ns = 0 if since is None else since_ns(since)
    config = load_config().config
    path = provider or config.provider_inputs
    inputs = None if path is None else load_provider_inputs(path)
    held = None if bundles is None else Bundles(bundles, [VerifyKey.load(path) for path in keys])
    ledger = open_ledger(config.ledger)
    try:
        return model_support(
            ledger, model_id, now_wall_ns=SystemClock.wall_ns(), since_wall_ns=since_wall_ns, provider=inputs,
            bundles=held,
        )  # fmt: skip
    finally:
        ledger.close()


def _show(document: Mapping[str, Any]) -> None:
    from rich.table import Table

    covers, console = document["covers"], stdout()
    console.print(f"{document['title']}: model {plain(covers['model_id'])}", markup=False, highlight=False)
    items = Table("Item", box=None, pad_edge=False)
    items.add_column("Status", no_wrap=True)
    items.add_column("Value", overflow="fold")
    items.add_column("Quality", no_wrap=True)
    for item in document["items"]:
        value = "not known" if item["value"] is None else f"{item['rounded'] or item['value']} {item['unit']}".strip()
        items.add_row(*map(_text, (item["title"], item["status"], value, item["quality"] or "")))
    console.print(items)
    runs = Table("Run", "State", "Tries", "Energy, µJ", "Quality", "Record", "Bundle", box=None, pad_edge=False)
    for each in covers["runs"]:
        name = f"{each['run']['flow']}/{each['name'] or each['run']['run_id']}"
        record = "complete" if each["complete"] else "; ".join(each["missing"])
        bundle = "" if each["bundle"] is None else " ".join([each["bundle"]["status"], *each["bundle"]["failures"]])
        cells = (
            name,
            each["state"],
            str(each["tries"]),
            each["energy_uj"] or "unknown",
            each["quality"],
            record,
            bundle,
        )
        runs.add_row(*map(_text, cells))
    console.print(f"\n{count(len(covers['runs']), 'run')} covered. {covers['note']}", markup=False, highlight=False)
    if covers["without_record"]:
        said = f"{count(covers['without_record'], 'run')} known by tasks alone: the run's own record is missing."
        console.print(said, markup=False, highlight=False)
    if summed_up := covers.get("summed_up"):
        said = f"{count(summed_up['tries'], 'try', 'tries')} more were summed up: in no list and no sum here."
        console.print(f"{said} See: tao-flows report --totals --by model.", markup=False, highlight=False)
    console.print(runs)
    console.print(f"\n{document['scope']}", markup=False, highlight=False)


def _text(value: str) -> Any:
    from rich.text import Text

    return Text(plain(value, 200))
