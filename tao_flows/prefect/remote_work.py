"""``with remote() as work:`` in a task whose work runs elsewhere: in a pod, on a cluster, on another host.

What this process does for it is dispatch, and counts as overhead; what the work takes is unknown here. A process there
that runs under ``tao-flows meter`` and finds the run in its environment reports as a part of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

from tao_flows.errors import InputError
from tao_flows.parent import PARENT_ENV, key_text
from tao_flows.prefect.run import try_here

B = TypeVar("B")


@dataclass(frozen=True)
class Remote:
    """What work elsewhere has to find in its environment, to be known as a part of this run."""

    variables: Mapping[str, str]
    """Environment variables; none where the task is not metered."""

    @property
    def env(self) -> dict[str, str]:
        """A whole environment for ``subprocess``: this process's, and the variables."""
        return {**os.environ, **self.variables}

    def told(self, job: B) -> B:
        """A copy of a block or a manifest that gives the variables to what it starts.

        Args:
            job: a ``KubernetesJob`` of prefect-kubernetes or its manifest, a ``ShellOperation`` of prefect-shell, or
                whatever else has its environment as a mapping in ``env``.

        Raises:
            InputError: REMOTE_JOB, it has no such place.
        """
        copied: Any = deepcopy(job) if isinstance(job, dict) else _copy(job)
        manifest = copied if isinstance(copied, dict) else getattr(copied, "v1_job", None)
        env = getattr(copied, "env", None)
        if isinstance(manifest, dict):
            self._tell_containers(manifest)
        elif isinstance(env, Mapping):
            copied.env = {**env, **self.variables}
        else:
            raise InputError(
                "REMOTE_JOB",
                f"{type(job).__name__} has no environment that is known here",
                "give what it starts the variables in .variables by its own means",
            )
        told: B = copied
        return told

    def _tell_containers(self, manifest: dict[str, Any]) -> None:
        spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for container in [*spec.get("initContainers", ()), *spec.get("containers", ())]:
            others = [each for each in container.get("env") or () if each.get("name") not in self.variables]
            container["env"] = [*others, *({"name": name, "value": value} for name, value in self.variables.items())]


@contextmanager
def remote() -> Iterator[Remote]:
    """Marks the try that runs here: its work runs elsewhere.

    Its own figure is then ``unknown`` for the reason ``REMOTE_WORK``, and what it did here is overhead. Outside a
    metered task nothing is marked, and there are no variables.
    """
    tried = try_here()
    if tried is None:
        yield Remote({})
        return
    tried.is_remote = True
    yield Remote({PARENT_ENV: key_text(tried.record.key)})


def _copy(job: Any) -> Any:
    """A block of its own: what it holds may be changed without changing the one that was loaded."""
    copied = job.model_copy() if hasattr(job, "model_copy") else deepcopy(job)
    if isinstance(getattr(copied, "v1_job", None), dict):
        copied.v1_job = deepcopy(copied.v1_job)
    return copied
