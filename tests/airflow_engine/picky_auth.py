"""An auth manager that keeps one DAG from all but admins, as deployments with permissions by DAG do."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

HIDDEN = "payroll"


class PickyAuthManager(SimpleAuthManager):
    """Airflow's simple auth manager, but for one DAG."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **asked: Any) -> bool:
        if details is not None and details.id == HIDDEN and user.role != "admin":
            return False
        return bool(super().is_authorized_dag(user=user, details=details, **asked))
