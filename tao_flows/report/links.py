"""Where the pages lead: the caller's to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tao_flows.ledger.base import RunRef
from tao_flows.records import RunKey


@dataclass(frozen=True, slots=True)
class Links:
    """Where the pages lead. What is empty is left out of the page, or written into it."""

    run: Callable[[RunRef], str] | None = None
    """The address of a run's page."""
    task: Callable[[RunKey], str] | None = None
    """The address of a try in the engine's own UI."""
    fleet: str = ""
    """The address of the fleet page: with it, the filters are a form that leads there."""
    json: str = ""
    """The address of the run as JSON; empty: it is written into the page, if it is no more than a megabyte."""
    csv: str = ""
    """The same for the rows of its tasks."""
    bundle: str = ""
    """The address of the run's bundle as one zip file."""
    release: str = ""
    """Where a Release button posts to: its fields are those of ``RunKey``, and ``token``."""
    token: str = ""
    """Goes with a release, so that no other site can ask for one."""
    may_release: Callable[[RunKey], bool] = lambda _: True
    """Whether the reader may release a try: without it there is no button."""
    target: str = "_self"
    """Where links open: ``_top`` for a page in a frame."""


NOWHERE: Final = Links()
"""A page that stands alone."""
