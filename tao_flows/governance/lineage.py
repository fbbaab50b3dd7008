"""OpenLineage events to wherever OpenLineage's own client is set up to send them; without that set up, nothing is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_VARIABLES: Final = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
_TRANSPORT: Final = "OPENLINEAGE__TRANSPORT"
_FILE: Final = "openlineage.yml"


def is_configured(env: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody has said where events go, in one of the ways that OpenLineage's client documents.

    Without that the client would print events to the console.

    https://openlineage.io/docs/client/python/configuration
    """
    if env.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    if any(env.get(name) for name in _VARIABLES) or any(name.startswith(_TRANSPORT) for name in env):
        return True
    try:
        return any((folder / _FILE).is_file() for folder in (Path.cwd(), Path.home() / ".openlineage"))
    except (OSError, RuntimeError):  # there is no working directory, or no home
        return False


def emit(document: Mapping[str, Any]) -> None:
    """Sends a run event, as ``formats.openlineage.document`` makes it. Blocks for as long as the transport's retries do.

    Raises:
        Exception: OpenLineage's client is not installed, is set up wrongly, or cannot send it.
    """
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState

    run, job = document["run"], document["job"]
    client = OpenLineageClient()
    client.emit(
        RunEvent(
            eventType=RunState[document["eventType"]],
            eventTime=document["eventTime"],
            # What it takes for objects it turns into dictionaries: a facet may be one.
            run=Run(runId=run["runId"], facets=dict(run["facets"])),
            job=Job(namespace=job["namespace"], name=job["name"]),
            producer=document["producer"],
        )
    )
    client.close()
