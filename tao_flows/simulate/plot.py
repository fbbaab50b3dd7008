"""A picture of what each policy saved and how long the jobs waited."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tao_flows.errors import InputError, MissingExtraError
from tao_flows.simulate.market import Job
from tao_flows.simulate.run import Result
from tao_flows.units import S_PER_H, s_from_ns

FORMATS: Final = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Refuses what could not be drawn, before anything is simulated.

    Raises:
        InputError: BAD_PLOT, the name ends otherwise.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError("BAD_PLOT", f"{path}: not a picture's name", f"end it with {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("simulate", "a plot")


def draw(path: Path, jobs: Sequence[Job], result: Result) -> None:
    """Writes the picture: shares of the oracle's saving, and the waits as a distribution.

    Raises:
        InputError: BAD_PLOT, the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    saved, waited = figure.subplots(1, 2)
    names = list(result.scores)
    shares = [result.scores[name].share_of_oracle for name in names]
    saved.barh(names, [100.0 * (share or 0.0) for share in shares], color="#2a7f62")
    saved.invert_yaxis()
    saved.set_xlabel("saved, % of what hindsight would have saved")
    arrivals = {job.job_id: job.arrival_ns for job in jobs}
    for name in names:
        schedule = result.schedules[name]
        waits_h = sorted(s_from_ns(start.start_ns - arrivals[job_id]) / S_PER_H for job_id, start in schedule.items())
        waited.plot(waits_h, [100.0 * rank / len(waits_h) for rank in range(1, len(waits_h) + 1)], label=name)
    waited.set_xlabel("waited at most, h")
    waited.set_ylabel("% of jobs")
    waited.legend(frameon=False)
    try:
        # Without the time of writing and with fixed names, the same run gives the same file.
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        with rc_context({"svg.hashsalt": "tao-flows"}):
            figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        problem = f"{path}: {error.strerror or error}"
        raise InputError("BAD_PLOT", problem, "give a file that can be written") from None
