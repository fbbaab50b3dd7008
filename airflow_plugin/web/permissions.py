"""Who may see and do what: Airflow's own auth manager is asked, for the DAG that the page is about.

An app that a plugin mounts has no authentication of its own, so every page here depends on one of these.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Annotated, Any, Final

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.auth.tokens import get_signing_key
from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, HTTPException
from itsdangerous import BadSignature, URLSafeTimedSerializer

from airflow_plugin._compat import dag_details

TOKEN_S: Final = 12 * 3600
"""How long a page's Release buttons work after it was opened."""
_FORBIDDEN: Final = "Airflow does not give you access to this"


class Reader:
    """Who asks."""

    def __init__(self, user: Any) -> None:
        self._user = user

    @property
    def name(self) -> str:
        """As Airflow shows it."""
        return str(self._user.get_name())

    def may_read(self, dag_id: str) -> bool:
        """Whether the DAG is shown to this user."""
        return self._may("GET", dag_id, None)

    def may_release(self, dag_id: str) -> bool:
        """Whether the user may change the DAG's task instances, as one does who clears or marks them."""
        return self._may("PUT", dag_id, DagAccessEntity.TASK_INSTANCE)

    def may_see_fleet(self) -> bool:
        """Whether the user may look at what the whole deployment does, as on Airflow's home page."""
        return bool(get_auth_manager().is_authorized_view(access_view=AccessView.CLUSTER_ACTIVITY, user=self._user))

    def readable_dags(self) -> Collection[str]:
        """The DAGs that are shown to this user."""
        return get_auth_manager().get_authorized_dag_ids(user=self._user, method="GET")  # type: ignore[no-any-return]

    def token(self) -> str:
        """Goes into the forms of a page: what another site has this user's browser send does not hold it."""
        return str(_serializer().dumps(str(self._user.get_id())))

    def is_own_token(self, token: str) -> bool:
        """Whether a form came from a page that this user was shown."""
        try:
            return bool(_serializer().loads(token, max_age=TOKEN_S) == str(self._user.get_id()))
        except BadSignature:
            return False

    def _may(self, method: str, dag_id: str, entity: DagAccessEntity | None) -> bool:
        return bool(
            get_auth_manager().is_authorized_dag(
                method=method, access_entity=entity, details=dag_details(dag_id), user=self._user
            )
        )


def signed_in(user: Annotated[Any, Depends(get_user)]) -> Reader:
    """Whoever is signed in to Airflow, by its cookie or a bearer token; else 401."""
    return Reader(user)


def of_dag(dag_id: str, reader: Annotated[Reader, Depends(signed_in)]) -> Reader:
    """Whoever may read the DAG in the path; else 403, whether there is such a DAG or not."""
    if not reader.may_read(dag_id):
        raise HTTPException(403, _FORBIDDEN)
    return reader


def of_fleet(reader: Annotated[Reader, Depends(signed_in)]) -> Reader:
    """Whoever may look at the deployment; else 403."""
    if not reader.may_see_fleet():
        raise HTTPException(403, _FORBIDDEN)
    return reader


@lru_cache(maxsize=1)  # without a key in the settings, Airflow makes another one up each time
def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(get_signing_key("api", "secret_key"), salt="tao-flows release")
