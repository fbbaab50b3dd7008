"""The pages in Airflow's UI: where they are, and an app that is built when the first one is asked for.

Nothing here imports FastAPI: the plugin, which every process of Airflow loads, names this app.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

PREFIX: Final = "/tao"
"""Where Airflow mounts the app, under its own ``[api] base_url``."""
TAB: Final = "/tab"
"""Before the path of a page that Airflow shows inside one of its own: it cannot lead out of its frame."""

_Message = MutableMapping[str, Any]
_App = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]


class LazyApp:
    """An ASGI app that builds the real one for its first request."""

    def __init__(self) -> None:
        self._app: _App | None = None

    async def __call__(self, scope: _Message, receive: Any, send: Any) -> None:
        """Hands a request on."""
        if self._app is None:
            from airflow_plugin.web.app import create_app

            self._app = create_app()
        await self._app(scope, receive, send)


def site_path() -> str:
    """The path that Airflow is served under, from ``[api] base_url``; empty for the root."""
    from airflow.configuration import conf

    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")


def run_path(dag_id: str, run_id: str, task_id: str = "") -> str:
    """The path of a run's page under ``PREFIX``, opened at a task if one is named.

    The run's id comes last: it is the one name that may hold a slash, and a server decodes ``%2F`` before it routes.
    """
    return f"/run/{_quoted(dag_id)}/{_quoted(run_id)}" + (f"#task-{_quoted(task_id)}" if task_id else "")


def external_views() -> list[dict[str, Any]]:
    """What Airflow's UI shows of us, in the words of the plugin interface; it fills the names in, percent-encoded."""
    root = site_path() + PREFIX
    icon = f"{root}/icon.svg"
    return [
        {
            "name": "Energy",
            "destination": "dag_run",
            "url_route": "tao-run",
            "href": f"{root}{TAB}/run/{{DAG_ID}}/{{RUN_ID}}",
            "icon": icon,
        },
        {
            "name": "Energy",
            "destination": "task_instance",
            "url_route": "tao-task",
            "href": f"{root}{TAB}/run/{{DAG_ID}}/{{RUN_ID}}#task-{{TASK_ID}}",
            "icon": icon,
        },
        {
            "name": "Energy",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": "tao-fleet",
            "href": f"{root}{TAB}/fleet",
            "icon": icon,
        },
    ]


def _quoted(name: str) -> str:
    return quote(name, safe="")
