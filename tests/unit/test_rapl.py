"""RAPL over powercap trees of real files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from tao_flows.clock import SystemClock
from tao_flows.errors import SourceError
from tao_flows.telemetry.base import Domain
from tao_flows.telemetry.counter import Difference, Wrapped, delta
from tao_flows.telemetry.rapl import RaplSource, mirrored
from tao_flows.testing import INTEL_RANGE_UJ, FakeClock, PowercapTree

LAYOUTS = ["nested", "linked", "flat"]


@pytest.fixture
def tree(tmp_path: Path) -> PowercapTree:
    return PowercapTree(tmp_path / "powercap")


def server(tree: PowercapTree) -> PowercapTree:
    """Two packages with DRAM, one with core and uncore, and psys."""
    tree.add_zone("intel-rapl:0", "package-0", 100)
    tree.add_zone("intel-rapl:0:0", "core", 10)
    tree.add_zone("intel-rapl:0:1", "uncore", 1)
    tree.add_zone("intel-rapl:0:2", "dram", 20)
    tree.add_zone("intel-rapl:1", "package-1", 200)
    tree.add_zone("intel-rapl:1:0", "dram", 30)
    tree.add_zone("intel-rapl:2", "psys", 1_000)
    return tree


def by_id(source: RaplSource) -> dict[str, Domain]:
    return {domain.id: domain for domain in source.domains}


def shown(source: RaplSource) -> dict[str, int | str | None]:
    pairs = zip(source.domains, source.read(), strict=True)
    return {domain.id: reading.error or reading.raw_uj for domain, reading in pairs}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zones_are_found_once_in_every_layout(tmp_path: Path, layout: Literal["nested", "linked", "flat"]) -> None:
    source = RaplSource(server(PowercapTree(tmp_path / "powercap", layout)).root, SystemClock())
    assert shown(source) == {
        "package-0": 100,
        "package-0/core": 10,
        "package-0/uncore": 1,
        "package-0/dram": 20,
        "package-1": 200,
        "package-1/dram": 30,
        "psys": 1_000,
    }


def test_links_beside_the_directories_they_lead_to_do_not_double_a_zone(tree: PowercapTree) -> None:
    path = server(tree).path("intel-rapl:0")
    (tree.root / "intel-rapl:0").symlink_to(path)
    (tree.root / "intel-rapl:7").symlink_to(path)
    (path / "subsystem").symlink_to(tree.root)
    source = RaplSource(tree.root, SystemClock())
    assert sorted(d.id for d in source.domains if d.counted and d.kind == "package") == ["package-0", "package-1"]


def test_only_packages_and_dram_are_counted(tree: PowercapTree) -> None:
    source = RaplSource(server(tree).root, SystemClock())
    assert [d.id for d in source.domains if d.counted] == ["package-0", "package-0/dram", "package-1", "package-1/dram"]
    domains = by_id(source)
    assert domains["package-0/core"].within == "package-0"
    assert domains["package-0/uncore"].within == "package-0"
    assert domains["package-0/dram"].within is None
    assert domains["psys"].kind == "psys"


def test_psys_is_counted_where_it_is_all_there_is(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "psys", 5)
    assert [(d.id, d.counted) for d in RaplSource(tree.root, SystemClock()).domains] == [("psys", True)]


def test_an_amd_package_with_its_core_is_the_package_alone(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0", range_uj=65_532_610_987)
    tree.add_zone("intel-rapl:0:0", "core", range_uj=65_532_610_987)
    source = RaplSource(tree.root, SystemClock())
    assert [d.id for d in source.domains if d.counted] == ["package-0"]
    assert source.domains[0].range_uj == 65_532_610_987


def test_the_second_interface_to_a_package_is_shown_and_not_counted(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0", 7)
    tree.add_zone("intel-rapl-mmio:0", "package-0", 7)
    domains = by_id(RaplSource(tree.root, SystemClock()))
    second = domains["package-0@intel-rapl-mmio:0"]
    assert domains["package-0"].counted
    assert not second.counted
    assert second.events == ("SECOND_INTERFACE_OF package-0",)
    assert second.within == "package-0"


def test_the_second_interface_is_counted_where_it_is_the_only_one(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl-mmio:0", "package-0", 7)
    assert [(d.id, d.counted) for d in RaplSource(tree.root, SystemClock()).domains] == [("package-0", True)]


def test_a_moved_counter_is_read_to_the_microjoule_and_across_a_wrap(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0", INTEL_RANGE_UJ - 1_000)
    clock = FakeClock()
    source = RaplSource(tree.root, clock)
    readings = [source.read()[0]]
    for step_uj in (400, 5_000_003):
        clock.advance(1)
        tree.move("intel-rapl:0", step_uj)
        readings.append(source.read()[0])
    assert delta(source.domains[0], readings[0], readings[1]) == Difference(400)
    assert delta(source.domains[0], readings[1], readings[2]) == Wrapped(5_000_003)
    assert [reading.at_ns for reading in readings] == [0, 10**9, 2 * 10**9]


def test_a_counter_replaced_by_a_new_file_is_followed(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0", 1)
    source = RaplSource(tree.root, SystemClock())
    tree.set("intel-rapl:0", 2, replace=True)
    assert shown(source) == {"package-0": 2}
    tree.set("intel-rapl:0", 3)
    assert shown(source) == {"package-0": 3}


def test_a_zone_that_vanishes_reads_as_vanished_while_the_others_go_on_and_returns(tree: PowercapTree) -> None:
    server(tree)
    source = RaplSource(tree.root, SystemClock())
    tree.vanish("intel-rapl:1")
    found = shown(source)
    assert found["package-1"] == found["package-1/dram"] == "READ_VANISHED"
    assert found["package-0"] == 100
    tree.add_zone("intel-rapl:1", "package-1", 9)
    assert shown(source)["package-1"] == 9


def test_a_zone_moved_away_with_its_files_alive_reads_as_vanished(tree: PowercapTree) -> None:
    path = tree.add_zone("intel-rapl:0", "package-0", 1)
    source = RaplSource(tree.root, SystemClock())
    path.rename(tree.root.parent / "elsewhere")
    assert shown(source) == {"package-0": "READ_VANISHED"}


def raws(source: RaplSource) -> list[int | str | None]:
    """As a window is read: the short way first, and where that has nothing to say the long one."""
    raws_uj = source.read_raw()
    return list(shown(source).values()) if raws_uj is None else list(raws_uj)


def test_the_short_way_of_reading_is_open_while_nothing_happens_and_as_fresh_as_the_long_one(
    tree: PowercapTree,
) -> None:
    source = RaplSource(server(tree).root, SystemClock())
    for moved_uj in (0, 1, 5_000):
        tree.move("intel-rapl:1", moved_uj)
        assert source.read_raw() == tuple(reading.raw_uj for reading in source.read())
    assert source.read_raw() == (100, 10, 1, 20, 5_201, 30, 1_000)


@pytest.mark.parametrize("inotify", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_short_way_misses_no_counter_that_was_replaced_moved_or_taken_away(
    tmp_path: Path, layout: Literal["nested", "linked", "flat"], inotify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not inotify:
        monkeypatch.setattr("tao_flows.telemetry.rapl.TreeWatch", refuse)
    tree = PowercapTree(tmp_path / "above" / "powercap", layout)
    path = tree.add_zone("intel-rapl:0", "package-0", 1)
    source = RaplSource(tree.root, SystemClock())
    assert raws(source) == [1]
    for energy_uj in (2, 3):
        tree.set("intel-rapl:0", energy_uj, replace=True)
        assert raws(source) == [energy_uj]
        tree.set("intel-rapl:0", energy_uj + 10)
        assert raws(source) == [energy_uj + 10]
    for one in (path, tree.root, tree.root.parent):
        away = one.rename(tmp_path / "away")
        assert raws(source) == ["READ_VANISHED"]
        assert raws(source) == ["READ_VANISHED"]
        away.rename(one)
        assert raws(source) == [13]
    (path / "energy_uj").unlink()
    assert raws(source) == ["READ_VANISHED"]
    (path / "energy_uj").write_text("14\n")
    assert raws(source) == [14]


def refuse(_paths: object) -> None:
    raise OSError(errno.EMFILE, "too many")


def test_a_link_that_is_made_to_lead_elsewhere_is_followed(tmp_path: Path) -> None:
    trees = {}
    for name, energy_uj in (("one", 1), ("two", 2)):
        trees[name] = PowercapTree(tmp_path / name)
        trees[name].add_zone("intel-rapl:0", "package-0", energy_uj)
    link = tmp_path / "links" / "powercap"
    link.parent.mkdir()
    link.symlink_to(trees["one"].root)
    source = RaplSource(link, SystemClock())
    assert raws(source) == [1]
    fresh = link.with_name("fresh")
    fresh.symlink_to(trees["two"].root)
    fresh.rename(link)
    assert raws(source) == [2]
    trees["two"].root.rename(tmp_path / "away")
    assert raws(source) == ["READ_VANISHED"]


@pytest.mark.parametrize(
    "text", ["rubbish\n", "", "-5\n", f"{INTEL_RANGE_UJ + 1}\n", "1.5\n", "\0\0", "9" * 64], ids=repr
)
def test_what_is_no_count_reads_as_rubbish_until_it_is_one_again(tree: PowercapTree, text: str) -> None:
    tree.add_zone("intel-rapl:0", "package-0", 1)
    source = RaplSource(tree.root, SystemClock())
    tree.rubbish("intel-rapl:0", text)
    assert shown(source) == {"package-0": "READ_RUBBISH"}
    tree.rubbish("intel-rapl:0", "42\n")
    assert shown(source) == {"package-0": 42}


def test_a_directory_in_place_of_the_counter_is_an_error_with_its_name(tree: PowercapTree) -> None:
    path = tree.add_zone("intel-rapl:0", "package-0", 1)
    source = RaplSource(tree.root, SystemClock())
    (path / "energy_uj").unlink()
    (path / "energy_uj").mkdir()
    assert shown(source) == {"package-0": "READ_FAILED:EISDIR"}


def test_closing_twice_gives_the_files_back_and_readings_say_so(tree: PowercapTree) -> None:
    server(tree)
    before = len(os.listdir("/proc/self/fd"))
    source = RaplSource(tree.root, SystemClock())
    opened = len(os.listdir("/proc/self/fd"))
    assert opened == before + 7 + 1  # the counters, and what tells of their being replaced
    tree.set("intel-rapl:0", 5, replace=True)
    source.read()
    assert len(os.listdir("/proc/self/fd")) == opened
    source.close()
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert set(shown(source).values()) == {"READ_CLOSED"}


@pytest.mark.parametrize(
    ("range_uj", "interval_s"), [(INTEL_RANGE_UJ, 10.0), (1_000_000_000, 0.4), (5, 0.05), (None, 10.0)]
)
def test_a_source_asks_to_be_read_before_its_narrowest_counter_can_wrap(
    tree: PowercapTree, range_uj: int | None, interval_s: float
) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    tree.add_zone("intel-rapl:0:0", "dram", range_uj=range_uj)
    assert RaplSource(tree.root, SystemClock()).max_interval_s == pytest.approx(interval_s)


@pytest.mark.parametrize("text", [None, "rubbish\n", "0\n", "-1\n"])
def test_a_range_that_is_missing_or_nonsense_is_unknown_and_said_to_be(tree: PowercapTree, text: str | None) -> None:
    path = tree.add_zone("intel-rapl:0", "package-0", 3, range_uj=None)
    if text is not None:
        (path / "max_energy_range_uj").write_text(text)
    domain = RaplSource(tree.root, SystemClock()).domains[0]
    assert domain.range_uj is None
    assert domain.events == ("RANGE_UNKNOWN",)


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir(), lambda root: root.write_text("")])
def test_without_zones_rapl_is_absent_and_the_remedies_are_named(tmp_path: Path, make: object) -> None:
    root = tmp_path / "powercap"
    assert callable(make)
    make(root)
    with pytest.raises(SourceError) as caught:
        RaplSource(root, SystemClock())
    assert caught.value.code == "RAPL_ABSENT"
    assert str(root) in caught.value.summary
    for cause in ("virtual machine", "container", "intel_rapl_msr"):
        assert cause in caught.value.remedy


def test_zones_that_cover_no_package_are_refused_by_name(tree: PowercapTree) -> None:
    tree.add_zone("dtpm:0", "pl2")
    with pytest.raises(SourceError, match="RAPL_NO_PACKAGE.*pl2"):
        RaplSource(tree.root, SystemClock())


def test_a_zone_that_only_limits_a_power_is_passed_over(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0", 1)
    (tree.add_zone("dtpm:0", "pl2") / "energy_uj").unlink()
    assert shown(RaplSource(tree.root, SystemClock())) == {"package-0": 1}


def test_a_tree_whose_every_counter_is_rubbish_is_unreadable(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    tree.rubbish("intel-rapl:0")
    with pytest.raises(SourceError, match="RAPL_UNREADABLE.*package-0 cannot be read: READ_RUBBISH"):
        RaplSource(tree.root, SystemClock())


def test_a_domain_that_cannot_be_read_stays_as_unknown_and_is_noted(tree: PowercapTree) -> None:
    server(tree)
    tree.rubbish("intel-rapl:1")
    source = RaplSource(tree.root, SystemClock())
    assert by_id(source)["package-1"].counted
    assert shown(source)["package-1"] == "READ_RUBBISH"
    assert source.notes == ("package-1 cannot be read: READ_RUBBISH",)


AS_NOBODY = """
import json, os, sys
from pathlib import Path
from tao_flows.clock import SystemClock
from tao_flows.errors import SourceError
from tao_flows.telemetry.rapl import RaplSource
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    source = RaplSource(Path(sys.argv[1]), SystemClock())
    print(json.dumps([source.notes, [r.error for r in source.read()]]))
except SourceError as error:
    print(json.dumps([error.code, error.summary, error.remedy]))
"""


def as_nobody(root: Path) -> list[Any]:
    # The temporary directories of root are closed to others; the tree has to be reachable for its own rights to count.
    for directory in (root, *root.parents):
        if directory.owner() == root.owner() and directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o711)
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, root], capture_output=True, text=True, timeout=60)
    if "ModuleNotFoundError" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"an unprivileged user cannot run this Python: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def test_counters_closed_to_this_user_say_rapl_permission_and_the_remedy(tree: PowercapTree) -> None:
    server(tree)
    for zone in ("0", "0:0", "0:1", "0:2", "1", "1:0", "2"):
        tree.deny(f"intel-rapl:{zone}")
    code, summary, remedy = as_nobody(tree.root)
    assert code == "RAPL_PERMISSION"
    assert "package-0 cannot be read: READ_DENIED" in summary
    assert "CVE-2020-8694" in remedy
    assert "never run the flow as root" in remedy


def test_one_counter_closed_to_this_user_is_unknown_beside_those_that_are_open(tree: PowercapTree) -> None:
    tree.add_zone("intel-rapl:0", "package-0")
    tree.add_zone("intel-rapl:0:0", "dram")
    tree.deny("intel-rapl:0:0")
    notes, errors = as_nobody(tree.root)
    assert notes == ["package-0/dram cannot be read: READ_DENIED"]
    assert errors == ["", "READ_DENIED"]


def test_a_root_closed_to_this_user_is_a_permission_not_an_absence(tree: PowercapTree) -> None:
    tree.root.chmod(0)
    assert as_nobody(tree.root)[0] == "RAPL_PERMISSION"


def window(*raws: tuple[int | None, int | None]) -> tuple[list[int | None], list[int | None]]:
    return [first for first, _ in raws], [last for _, last in raws]


def packages(*ids: str, counted: bool = True) -> list[Domain]:
    return [Domain(i, "dram" if i.endswith("dram") else "package", "rapl", counted, range_uj=10**12) for i in ids]


def test_a_package_that_shows_anothers_counter_at_both_ends_mirrors_it() -> None:
    domains = packages("package-0", "package-1", "package-2")
    assert mirrored(domains, *window((5, 9), (5, 9), (5, 9))) == {"package-1": "package-0", "package-2": "package-0"}


@pytest.mark.parametrize(
    ("first", "second"),
    [((5, 9), (5, 8)), ((5, 9), (4, 9)), ((5, 5), (5, 5)), ((None, 9), (None, 9)), ((5, None), (5, None))],
    ids=["ends differ", "beginnings differ", "did not move", "no beginning", "no end"],
)
def test_what_is_not_shown_to_be_the_same_counter_is_no_mirror(
    first: tuple[int | None, int | None], second: tuple[int | None, int | None]
) -> None:
    assert mirrored(packages("package-0", "package-1"), *window(first, second)) == {}


def test_only_counted_domains_of_one_kind_mirror_each_other() -> None:
    assert mirrored(packages("package-0", "package-1/dram"), *window((5, 9), (5, 9))) == {}
    assert mirrored(packages("package-0", "package-1", counted=False), *window((5, 9), (5, 9))) == {}


def test_dies_of_one_package_may_straddle_an_update_and_packages_may_not() -> None:
    straddling = window((5_000_000, 9_000_000), (5_400_000, 9_000_000))
    dies = packages("package-0-die-0", "package-0-die-1")
    assert mirrored(dies, *straddling) == {"package-0-die-1": "package-0-die-0"}
    assert mirrored(packages("package-0", "package-1"), *straddling) == {}
    assert mirrored(packages("package-0-die-0", "package-1-die-1"), *straddling) == {}
    assert mirrored(packages("package-0-die-0/dram", "package-0-die-1/dram"), *straddling) == {
        "package-0-die-1/dram": "package-0-die-0/dram"
    }


def test_dies_read_on_either_side_of_a_wrap_are_still_mirrors() -> None:
    dies = packages("package-0-die-0", "package-0-die-1")
    assert mirrored(dies, *window((5, 10**12 - 10), (5, 300))) == {"package-0-die-1": "package-0-die-0"}


def test_dies_more_than_a_joule_apart_are_two_counters() -> None:
    dies = packages("package-0-die-0", "package-0-die-1")
    assert mirrored(dies, *window((5_000_000, 9_000_000), (5_000_000, 10_000_001))) == {}
