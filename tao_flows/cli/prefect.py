"""``tao-flows prefect``: what is done to a Prefect server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stderr
from tao_flows.errors import InputError, MissingExtraError, TaoError

prefect_app = typer.Typer(help="Prefect: deploy a flow to several pools.")


@prefect_app.callback()
def prefect_command() -> None:
    """Prefect: deploy a flow to several pools."""


@prefect_app.command("deploy")
def deploy_command(
    entrypoint: Annotated[str, typer.Argument(metavar="FILE:FLOW", help="The flow, as Prefect's own deploy takes it.")],
    *,
    pool: Annotated[
        list[str] | None,
        typer.Option("--pool", metavar="POOL[/QUEUE]", help="A pool; repeat it. None: every work pool described."),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="STEM", help="What the names of the deployments begin with.")
    ] = "tao",
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag; repeat it. tao:NAME=VALUE is ours.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A parameter, JSON or text; repeat it.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Where workers get the code: a directory or a repository.")
    ] = None,
    image: Annotated[str | None, typer.Option("--image", help="An image that holds the code.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Create or update one deployment of a flow per pool, so that its runs can go where power is cleanest."""
    try:
        if name.count("@") or "/" in name or not name:
            raise InputError("BAD_NAME", f"--name: {name!r} holds @ or /, or nothing", "write --name nightly")
        if source is not None and image is not None:
            raise InputError("BAD_USAGE", "the code is in a source or in an image", "give --source or --image")
        parameters = _parameters(param)
        try:
            from tao_flows.prefect.deploy import Wanted, deploy_now
        except ImportError as error:
            raise MissingExtraError("prefect", "tao-flows prefect") from error
        pools = tuple(dict.fromkeys(pool)) if pool else ()
        wanted = Wanted(entrypoint, pools, name, source, image, parameters, tuple(tag or ()))
        done, left = deploy_now(wanted)
    except TaoError as error:
        fail(error)
    if left:
        stderr().print(f"no work pools, left out: {', '.join(left)}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        rows = [{"pool": d.pool, "name": d.name, "id": d.id, "what": d.what, "tags": list(d.tags)} for d in done]
        print_json({"schema": "tao-flows/prefect-deploy/1", "deployments": rows})
    else:
        for each in done:
            print(f"{each.what} {each.name} in pool {each.pool}" + (f" ({', '.join(each.tags)})" if each.tags else ""))


def _parameters(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Parameters by name; a value that is no JSON is a text, as in Prefect's own commands."""
    if not given:
        return None
    found: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            raise InputError("BAD_USAGE", f"--param: {each!r} is not NAME=VALUE", "write --param batch=10")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found
