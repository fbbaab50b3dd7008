"""Which runs get a report where they are shown."""

from __future__ import annotations

import hashlib


def report_wanted(setting: str, run_id: str, *, good: bool) -> bool:
    """Whether a run is to have its report, by the setting ``report_artifacts``.

    Of ``1/N`` every run that did not end well has one, and of the others one in N, chosen by the run's id: a run whose
    report is issued more than once is chosen every time or never.

    Args:
        setting: ``always``, ``failures``, ``never`` or ``1/N``.
        run_id: the engine's.
        good: it ended as it should.
    """
    if setting in {"always", "never"} or not good:
        return setting != "never"
    if setting == "failures":
        return False
    digest = hashlib.blake2b(run_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % int(setting.removeprefix("1/")) == 0
