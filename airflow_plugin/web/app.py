"""The app of the pages, mounted by Airflow's API server. It says who may see what; the report says what is shown.

Every path is there twice: as a page of its own, and under ``TAB`` for the frames of Airflow's UI. From a frame nothing
can be opened but in itself (Airflow sandboxes it), so the pages there do not link to Airflow's own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from airflow_plugin import _compat
from airflow_plugin.facts import ENGINE, run_ref
from airflow_plugin.web import PREFIX, TAB, run_path, site_path
from airflow_plugin.web.download import bundle_file
from airflow_plugin.web.icon import ICON
from airflow_plugin.web.notice import HEADERS, notice, page, sign_in
from airflow_plugin.web.permissions import Reader, of_dag, of_fleet, signed_in
from airflow_plugin.web.reading import DagLedger, Reading, Sources
from airflow_plugin.web.release import key_of, release
from tao_flows.errors import InputError, LedgerError, TaoError
from tao_flows.ledger.base import RunRef
from tao_flows.records import RunKey
from tao_flows.report.export import run_rows, write_csv
from tao_flows.report.model import read_report
from tao_flows.report.pages import Links, find_run, fleet_page, run_page

T = TypeVar("T")
UNMAPPED: Final = ("", "-1")
"""The instance of a task that is not mapped."""
_STATUS: Final = {"RUN_NOT_FOUND": 404, "NO_BUNDLE": 404, "NOT_OURS": 403, "FORBIDDEN": 403, "INTERNAL": 500}
"""By code; else 400 for what was asked wrongly, and 503 for what cannot be answered."""


def create_app(reading: Reading | None = None) -> FastAPI:
    """The app.

    Args:
        reading: settings and ledger; by default this process's.
    """
    app = FastAPI(title="tao-flows", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.reading = reading or Reading()
    for under in ("", TAB):
        app.add_api_route(f"{under}/run/{{dag_id}}/{{run_id:path}}", _run)
        app.add_api_route(f"{under}/json/{{dag_id}}/{{run_id:path}}", _json)
        app.add_api_route(f"{under}/csv/{{dag_id}}/{{run_id:path}}", _csv)
        app.add_api_route(f"{under}/bundle/{{dag_id}}/{{run_id:path}}", _bundle)
        app.add_api_route(f"{under}/fleet", _fleet)
        app.add_api_route(f"{under}/release", _release, methods=["POST"])
    app.add_api_route("/icon.svg", _icon)
    app.add_exception_handler(TaoError, _explain)
    app.add_exception_handler(HTTPException, _refuse)
    return app


async def _run(request: Request, dag_id: str, run_id: str, reader: Annotated[Reader, Depends(of_dag)]) -> Response:
    def read(sources: Sources) -> str:
        ref = run_ref(dag_id, run_id, sources.config.namespace)
        find_run(sources.ledger, ref)  # what the ledger cannot answer ends here, with a status of its own
        links = _run_links(request, reader, ref)
        return run_page(DagLedger(sources.ledger), ref, board=sources.board, config=sources.config, links=links)

    return page(await _within(request, read))


async def _json(request: Request, dag_id: str, run_id: str, _: Annotated[Reader, Depends(of_dag)]) -> Response:
    def read(sources: Sources) -> str:
        run = find_run(sources.ledger, run_ref(dag_id, run_id, sources.config.namespace))
        report = read_report(DagLedger(sources.ledger), run)
        return json.dumps(report.to_json(), allow_nan=False, indent=1)

    return _download(await _within(request, read), "application/json", f"{dag_id} {run_id}.json")


async def _csv(request: Request, dag_id: str, run_id: str, _: Annotated[Reader, Depends(of_dag)]) -> Response:
    def read(sources: Sources) -> str:
        run = find_run(sources.ledger, run_ref(dag_id, run_id, sources.config.namespace))
        text = io.StringIO(newline="")
        write_csv(run_rows(sources.ledger, run), text)
        return text.getvalue()

    return _download(await _within(request, read), "text/csv", f"{dag_id} {run_id}.csv")


async def _bundle(request: Request, dag_id: str, run_id: str, _: Annotated[Reader, Depends(of_dag)]) -> Response:
    def read(sources: Sources) -> Path:
        return bundle_file(sources, run_ref(dag_id, run_id, sources.config.namespace))

    archive = await _within(request, read)
    return FileResponse(archive, headers=_headers(archive.name), media_type="application/zip")


async def _fleet(request: Request, reader: Annotated[Reader, Depends(of_fleet)]) -> Response:
    def read(sources: Sources) -> str:
        sources.ledger.find_runs("latest")  # as above
        return fleet_page(
            sources.ledger,
            board=sources.board,
            config=sources.config,
            # Whoever may read a DAG has no right to what another engine calls by the same name.
            query={**request.query_params, "engine": ENGINE, "namespace": sources.config.namespace},
            flows=reader.readable_dags(),
            links=_fleet_links(request, reader),
        )

    return page(await _within(request, read))


async def _release(request: Request, reader: Annotated[Reader, Depends(signed_in)]) -> Response:
    form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    if not reader.is_own_token(form.get("token", "")):
        return notice(
            request,
            403,
            "This form is not from a page of yours, or it is too old.",
            "Open the page anew.",
            code="TOKEN",
        )

    def act(sources: Sources) -> tuple[bool, RunKey]:
        key = key_of(form, sources.config.namespace)
        if not reader.may_release(key.flow):
            raise InputError("FORBIDDEN", "Airflow does not let you change this DAG's task instances")
        return release(sources.ledger, key, reader.name), key

    released, key = await _within(request, act)
    mapped = f"[{key.instance}]" if key.instance not in UNMAPPED else ""
    which = f"{key.flow} {key.run_id} {key.task}{mapped}, try {key.try_number}"
    said = f"Released {which}: it starts as soon as its engine gets to it." if released else f"{which} no longer waits."
    return notice(request, 200, said, leads=("Back to the run", _root(request) + run_path(key.flow, key.run_id)))


async def _icon() -> Response:
    headers = {"Cache-Control": "public, max-age=86400", "X-Content-Type-Options": "nosniff"}
    return Response(ICON, headers=headers, media_type="image/svg+xml")


async def _within(request: Request, read: Callable[[Sources], T]) -> T:
    return await cast("Reading", request.app.state.reading).within(read)


def _run_links(request: Request, reader: Reader, ref: RunRef) -> Links:
    root, where = _root(request), run_path(ref.flow, ref.run_id).removeprefix("/run")
    asks = _compat.pages_know_the_reader()
    return Links(
        run=partial(_run_address, root),
        task=None if _in_frame(request) else _task_address,
        json=f"{root}/json{where}" if asks else "",
        csv=f"{root}/csv{where}" if asks else "",
        bundle=f"{root}/bundle{where}" if asks else "",
        **_release_links(request, reader),
    )


def _fleet_links(request: Request, reader: Reader) -> Links:
    root = _root(request)
    return Links(run=partial(_run_address, root), fleet=f"{root}/fleet", **_release_links(request, reader))


def _release_links(request: Request, reader: Reader) -> Mapping[str, Any]:
    if not _compat.pages_know_the_reader():
        return {}  # neither a form nor a download carries the token that Airflow 3.0 keeps in the browser
    may = lru_cache(reader.may_release)
    return {
        "release": f"{_root(request)}/release",
        "token": reader.token(),
        "may_release": lambda key: key.engine == ENGINE and may(key.flow),
    }


def _run_address(root: str, ref: RunRef) -> str:
    return root + run_path(ref.flow, ref.run_id)


def _task_address(key: RunKey) -> str:
    dag, run, task = (quote(name, safe="") for name in (key.flow, key.run_id, key.task))
    mapped = f"/mapped/{quote(key.instance, safe='')}" if key.instance not in UNMAPPED else ""
    return f"{site_path()}/dags/{dag}/runs/{run}/tasks/{task}{mapped}"


def _in_frame(request: Request) -> bool:
    return bool(request.scope["route"].path.startswith(TAB))


def _root(request: Request) -> str:
    return site_path() + PREFIX + (TAB if _in_frame(request) else "")


def _download(text: str, media_type: str, name: str) -> Response:
    return Response(text, headers=_headers(name), media_type=media_type)


def _headers(name: str) -> dict[str, str]:
    # Names in ASCII alone: what else is in them goes percent-encoded, as RFC 6266 has it.
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in " ._-+") else "_" for letter in name)
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    return {**HEADERS, "Content-Disposition": disposition}


async def _explain(request: Request, error: Exception) -> Response:
    known = cast("TaoError", error)
    status = _STATUS.get(known.code, 400 if isinstance(known, InputError) else 503)
    summary = f"The ledger does not answer: {known.summary}" if isinstance(known, LedgerError) else known.summary
    return notice(request, status, summary, known.remedy, code=known.code)


async def _refuse(request: Request, error: Exception) -> Response:
    refused = cast("HTTPException", error)
    if refused.status_code == 401:
        login = f"{site_path()}/api/v2/auth/login?next={quote(str(request.url), safe='')}"
        return sign_in(request, login, with_token=not _compat.pages_know_the_reader())
    return notice(request, refused.status_code, str(refused.detail), code=f"HTTP_{refused.status_code}")
