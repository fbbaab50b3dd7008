"""What a flow run shows of its bundle: an artifact that leads to it, and a section of the report's page."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.results import get_default_result_storage

from tao_flows.config import RESULTS
from tao_flows.governance.storage import store
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.seals import Seal
from tao_flows.prefect._compat import ArtifactCreate, impatient, impatient_client
from tao_flows.prefect.publish import page_key, slug_of

FOLDER: Final = "tao-flows-bundles"
HEADING: Final = "\n\n### Signed record\n\n"
"""Begins the section of the page; a later revision of the bundle takes its place."""


def copied(archive: Path, where: str) -> str:
    """Puts a copy of a bundle's archive where ``bundle_storage`` says; its address there.

    Prefect's result storage is the one that the settings of the process that seals name.

    Raises:
        TaoError: as ``store``.
        Exception: Prefect's result storage cannot be written.
    """
    if where != RESULTS:
        return store(archive, where)
    with impatient():
        storage: Any = get_default_result_storage()
    path = f"{FOLDER}/{archive.name}"
    written = storage.write_path(path, content=archive.read_bytes())
    if inspect.isawaitable(written):  # of a block that has no other way
        written = asyncio.run(_awaited(written))
    return str(written or path)


def show(seal: Seal, run: RunRef, copy: str) -> None:
    """Puts a bundle on its flow run: the artifact, and the section where there is a page.

    Args:
        seal: the bundle, as it was sealed.
        run: the run; its flow is given.
        copy: where a copy of it is; empty for nowhere.

    Raises:
        Exception: the API does not answer.
    """
    run_id = UUID(run.run_id)
    with impatient_client() as client:
        page = _page(client, run_id, page_key(run.flow))
        if page is not None:
            data = str(page.data).partition(HEADING)[0] + HEADING + _table(seal, copy)
            client.create_artifact(
                ArtifactCreate(
                    key=page.key, type="markdown", description=page.description, data=data, flow_run_id=run_id
                )
            )
        client.create_artifact(
            ArtifactCreate(
                key=f"tao-bundle-{slug_of(run.flow)}",
                type="markdown",
                description=f"The signed record of this run, {_whole(seal)}",
                data=f"{_link(seal, copy)}\n\n{_table(seal, copy)}",
                flow_run_id=run_id,
            )
        )


def _page(client: SyncPrefectClient, run_id: UUID, key: str) -> Any:
    """The report's page as it was published last; None where there is none."""
    which = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[key])
    )  # fmt: skip
    found = client.read_artifacts(artifact_filter=which, sort=ArtifactSort.CREATED_DESC, limit=1)
    return found[0] if found else None


def _link(seal: Seal, copy: str) -> str:
    address = copy if "://" in copy else Path(copy or seal.place).absolute().as_uri()
    return f"[{Path(seal.place).name}]({address})"


def _table(seal: Seal, copy: str) -> str:
    rows = [
        ("Digest", f"`sha256:{seal.digest}`"),
        ("Key", f"`{seal.keyid}`" if seal.keyid else "none: the bundle is unsigned, and does not verify"),
        ("Signer", f"`{seal.signer}`"),
        ("Record", _whole(seal)),
        ("Bundle", f"`{seal.place}`"),
        *((("Copy", f"`{copy}`"),) if copy else ()),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, "", "Check it with `tao-flows verify BUNDLE --key PUB`."])


def _whole(seal: Seal) -> str:
    return "complete" if seal.complete else "incomplete: its files say what is missing"


async def _awaited(written: Any) -> Any:
    return await written
