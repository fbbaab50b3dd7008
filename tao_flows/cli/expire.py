"""``tao-flows expire``: deletes bundles that need no longer be kept. Nothing else ever does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import fail, print_json
from tao_flows.cli.verify import FALSE, KeyOption
from tao_flows.config import load_config
from tao_flows.errors import ConfigError, InputError, TaoError
from tao_flows.governance.expiry import Looked, expire
from tao_flows.governance.keys import VerifyKey
from tao_flows.report.text import count

SCHEMA = "tao-flows/expire/1"


def expire_command(
    key: KeyOption,
    older_than: Annotated[
        str | None, typer.Option(metavar="PERIOD", help="Such as 10y, 6mo, 2w, 30d; TAO_FLOWS_RETENTION by default.")
    ] = None,
    bundles: Annotated[
        Path | None, typer.Option("--bundles", metavar="DIR", help="Where they lie; TAO_FLOWS_BUNDLES by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Delete sealed bundles older than a period, those that verify. Ends with 1 if one does not."""
    try:
        config = load_config(arguments={"bundles": bundles, "retention": older_than}).config
        if config.bundles is None:
            raise ConfigError("NO_BUNDLES", "no directory for bundles is set", "give --bundles DIR")
        if not config.retention:
            raise ConfigError("NO_RETENTION", "no period is set", "give --older-than PERIOD, such as 10y")
        keys = [VerifyKey.load(path) for path in key]
        found = list(expire(config.bundles, config.retention, keys, time.time_ns(), delete=not dry_run))
    except TaoError as error:
        fail(error)
    except OSError as error:
        fail(InputError("UNWRITABLE", f"{error.filename}: {error.strerror}", "see that this process may delete there"))
    if as_json:
        rows = [each.to_json() for each in found]
        print_json({"schema": SCHEMA, "period": config.retention, "dry_run": dry_run, "bundles": rows})
    else:
        _show(found)
    if any(each.status == "refused" for each in found):
        raise typer.Exit(FALSE)


def _show(found: list[Looked]) -> None:
    for each in found:
        why = f"  {each.code}" if each.code else f"  until {each.keep_until}" if each.status == "kept" else ""
        print(f"{each.status:<9} {each.path}{why}")
    gone = sum(each.status in ("deleted", "due") for each in found)
    print(f"{count(gone, 'bundle')} of {len(found)}: need no longer be kept")
