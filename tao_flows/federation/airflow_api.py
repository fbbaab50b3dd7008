"""Another organisation's Airflow, through its public REST API (version 2): runs of one DAG are begun, looked at and stopped.

Airflow documents it at ``/docs`` of every API server. The address and the key are those of our settings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

from tao_flows.errors import SourceError
from tao_flows.federation.fetch import Answer, ask

REFUSED: Final = "PARTNER_REFUSED"
FINAL: Final = frozenset({"success", "failed"})
"""States that a DAG run does not leave by itself."""
GONE: Final = "gone"
"""The state of a run that was deleted there."""
_MOST_BYTES: Final = 1 << 20
_THERE_ALREADY: Final = 409
_NOT_FOUND: Final = 404
_UNAUTHORIZED: Final = 401
_LATER: Final = frozenset({408, 425, 429})


@dataclass
class AirflowApi:
    """One deployment. Every method takes seconds at most.

    Raises (every method):
        SourceError: PARTNER_REFUSED, it will not; another code where it does not answer.
    """

    org: str
    api_url: str
    user: str = ""
    key: str = field(default="", repr=False)
    """A token; where there is a user, the password for which the API gives one."""
    _token: str = field(default="", repr=False)

    def begin(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Has a DAG run; one of this id that is there already is that run."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        answer = self._ask("POST", f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns", body)
        if answer.status != _THERE_ALREADY:
            self._check(answer)

    def state(self, dag_id: str, run_id: str) -> str:
        """How a run stands; ``GONE`` where there is none."""
        answer = self._ask("GET", _run(dag_id, run_id))
        if answer.status == _NOT_FOUND:
            return GONE
        state = self._check(answer).get("state")
        if not isinstance(state, str):
            raise SourceError(
                "PARTNER_UNREACHABLE", f"{self.org} tells no state of a run", "see its version of Airflow"
            )
        return state

    def stop(self, dag_id: str, run_id: str) -> None:
        """Marks a run as failed, which ends its tasks; one that has ended or is gone stays as it is."""
        if self.state(dag_id, run_id) not in {*FINAL, GONE}:
            self._check(self._ask("PATCH", _run(dag_id, run_id), {"state": "failed"}))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        answer = self._once(method, path, body, self._bearer())
        if answer.status == _UNAUTHORIZED and self.user:
            self._token = ""  # it has ended
            answer = self._once(method, path, body, self._bearer())
        return answer

    def _once(self, method: str, path: str, body: dict[str, Any] | None, bearer: str) -> Answer:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        # Our own settings name the host, so that its address may be a private one.
        allowed = (urlsplit(self.api_url).hostname or "",)
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        url = self.api_url + path
        return ask(method, url, headers=headers, body=data, allow_hosts=allowed, max_bytes=_MOST_BYTES)

    def _bearer(self) -> str:
        if not self.user:
            return self.key
        if not self._token:
            given = self._once("POST", "/auth/token", {"username": self.user, "password": self.key}, "")
            self._token = str(self._check(given).get("access_token", ""))
        return self._token

    def _check(self, answer: Answer) -> dict[str, Any]:
        if 200 <= answer.status < 300:
            try:
                said = json.loads(answer.body)
            except (ValueError, RecursionError):
                said = None
            if isinstance(said, dict):
                return said
            raise SourceError("PARTNER_UNREACHABLE", f"{self.org} answers with no JSON object", "see api_url")
        summary = f"{self.org} answers HTTP {answer.status}"
        if 400 <= answer.status < 500 and answer.status not in _LATER:
            raise SourceError(REFUSED, summary, "see that its DAG is there, and takes this key and this configuration")
        raise SourceError("PARTNER_UNREACHABLE", summary, "it is asked again")


def _run(dag_id: str, run_id: str) -> str:
    return f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"
