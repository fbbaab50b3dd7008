"""How work that runs elsewhere finds the run that it belongs to: one text in its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from tao_flows.records import RunKey, Segment
from tao_flows.telemetry.procfs import process_stat

PARENT_ENV: Final = "TAO_FLOWS_PARENT"
"""The run key of the try that started this process, as one text."""
REMOTE_WORK: Final = "REMOTE_WORK"
"""Why a task's energy is unknown: it ran where nothing of ours counts."""
COUNTED_BY_ENV: Final = "TAO_FLOWS_COUNTED_BY"
"""The segment whose figure has all that its process starts in it; it is set only where that is so."""


def key_text(key: RunKey) -> str:
    """A run key as one text, which ``parse_key`` reads."""
    return "/".join(quote(str(getattr(key, field.name)), safe="") for field in fields(key))


def parse_key(text: str) -> RunKey | None:
    """The run key that a text says; None where it says none."""
    *parts, number = map(unquote, text.split("/"))
    *names, _ = (field.name for field in fields(RunKey))
    if len(parts) != len(names) or not number.isdecimal() or not all(parts):
        return None
    return RunKey(**dict(zip(names, parts, strict=True)), try_number=int(number))


def parent_of(segment: Segment, proc_root: Path, env: Mapping[str, str] = os.environ) -> RunKey | None:
    """The try that a process's own measurement is a part of; None where it belongs to none, or is counted there already.

    Args:
        segment: the process's.
        proc_root: where the kernel shows processes.
        env: the process's environment.
    """
    key = parse_key(env.get(PARENT_ENV, ""))
    return None if key is None or _is_within(env.get(COUNTED_BY_ENV, ""), segment, proc_root) else key


def _is_within(counted_by: str, segment: Segment, proc_root: Path) -> bool:
    """Whether a process was started by the one of a segment, which then has it in its figure."""
    host, _, rest = counted_by.partition("/")
    boot_id, _, process = rest.partition("/")
    pid: int = segment.pid
    if (host, boot_id) != (segment.host, segment.boot_id):
        return False
    while pid > 1:
        stat = process_stat(pid, proc_root)
        if stat is None:
            return False
        if process.startswith(f"{stat.pid}/{stat.start_ticks}/"):
            return True
        pid = stat.parent
    return False
