"""Control groups: found in trees written by the test, and made where the kernel lets us."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tao_flows.errors import SourceError
from tao_flows.telemetry import cgroup
from tao_flows.telemetry.cgroup import Leaf

ROOT = Path("/sys/fs/cgroup")


def proc(tmp_path: Path, own: str, *mounts: tuple[str, str, str]) -> Path:
    """A /proc whose process is in group ``own`` and sees ``mounts``: (type, group at the top, mount point)."""
    root = tmp_path / "proc"
    (root / "self").mkdir(parents=True)
    (root / "self" / "cgroup").write_text(f"4:memory:/elsewhere\n0::{own}\n")
    lines = [
        f"{i} 1 0:2 {top} {point} rw,nosuid shared:4 - {kind} {kind} rw\n"
        for i, (kind, top, point) in enumerate(mounts)
    ]
    (root / "self" / "mountinfo").write_text("".join(lines))
    return root


def group(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text("")
    (path / "cgroup.procs").write_text("")
    return path


@pytest.fixture
def own_group() -> Path:
    """Our own control group, where one may be made below it."""
    try:
        parent = cgroup.own_group(ROOT)
        assert Leaf(parent).close()
    except SourceError as error:
        pytest.skip(str(error))
    return parent


def test_our_group_is_found_where_version_2_is_mounted_alone(tmp_path):
    top = tmp_path / "cgroup"
    mine = group(group(top) / "user.slice" / "mine")

    assert cgroup.own_group(top, proc(tmp_path, "/user.slice/mine", ("cgroup2", "/", str(top)))) == mine


def test_our_group_is_found_where_version_2_is_mounted_beside_version_1(tmp_path):
    top = tmp_path / "c group"
    unified = group(top / "unified")
    mounts = ("cgroup", "/", str(top / "memory")), ("cgroup2", "/", str(unified).replace(" ", "\\040"))

    assert cgroup.own_group(top, proc(tmp_path, "/", *mounts)) == unified


def test_our_group_is_found_in_a_container_that_sees_only_its_own_part(tmp_path):
    top = tmp_path / "cgroup"
    mine = group(group(top) / "work")

    assert cgroup.own_group(top, proc(tmp_path, "/docker/4ee/work", ("cgroup2", "/docker/4ee", str(top)))) == mine


@pytest.mark.parametrize("own", ["/docker/other", "/../other", "/gone (deleted)"])
def test_a_group_that_lies_outside_what_is_mounted_is_hidden(tmp_path, own):
    top = group(tmp_path / "cgroup")
    group(tmp_path / "other")

    with pytest.raises(SourceError) as caught:
        cgroup.own_group(top, proc(tmp_path, own, ("cgroup2", "/docker/4ee", str(top))))
    assert caught.value.code == "CGROUP_HIDDEN"


def test_version_1_alone_is_told_apart_from_nothing_and_from_a_wrong_setting(tmp_path):
    top = tmp_path / "cgroup"
    cases = {
        "v1": ([("cgroup", "/", str(top / "cpu"))], "CGROUP_V1_ONLY", "unified_cgroup_hierarchy"),
        "none": ([], "CGROUP_ABSENT", "mount cgroup2"),
        "elsewhere": ([("cgroup2", "/", "/else/where")], "CGROUP_ABSENT", "TAO_FLOWS_CGROUP_ROOT to /else/where"),
    }
    for name, (mounts, code, remedy) in cases.items():
        with pytest.raises(SourceError) as caught:
            cgroup.own_group(top, proc(tmp_path / name, "/", *mounts))
        assert caught.value.code == code
        assert remedy in caught.value.remedy


def test_a_directory_that_may_not_be_written_is_refused_with_a_remedy(tmp_path):
    parent = tmp_path / "cgroup"
    parent.mkdir()  # no list of processes to write to, which not even root may do without

    with pytest.raises(SourceError) as caught:
        Leaf(parent)
    assert caught.value.code == "CGROUP_NOT_WRITABLE"
    assert "systemd-run" in caught.value.remedy
    assert list(parent.iterdir()) == []


def test_the_hosts_root_group_has_no_type_and_a_containers_top_group_has_one(tmp_path):
    top = group(tmp_path)
    (top / "cpu.stat").write_text("usage_usec 9\nuser_usec 2500000\nsystem_usec 500000\nnice_usec 1\n")
    assert cgroup.is_host_root(top)
    assert cgroup.root_busy_s((top / "cpu.stat").read_bytes()) == pytest.approx(3.0)

    (top / "cgroup.type").write_text("domain\n")
    assert not cgroup.is_host_root(top)
    assert cgroup.root_busy_s(b"usage_usec 9\n") is None


def test_a_leaf_counts_what_joined_it_and_all_it_started_after_they_have_ended(own_group):
    leaf = Leaf(own_group)
    try:
        burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
        child = subprocess.Popen(
            ["sh", "-c", f"read x; ( {burn} ); ( {burn} ) & wait; times"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        leaf.join(child.pid)
        before_s = leaf.cpu_s()
        assert leaf.pids() == (child.pid,)
        output, _ = child.communicate("go\n")
        truth_s = sum(float(part.partition("m")[2].removesuffix("s")) for part in output.split())
        assert leaf.cpu_s() - before_s == pytest.approx(truth_s, rel=0.05, abs=0.03)
        assert leaf.pids() == ()
    finally:
        assert leaf.close()
    assert not leaf.path.exists()
    assert leaf.cpu_s() is None


def test_a_leaf_with_something_alive_in_it_stays_until_a_later_leaf_finds_its_maker_gone(own_group):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from tao_flows.telemetry.cgroup import Leaf\n"
        "leaf = Leaf(Path(sys.argv[2])); leaf.join(int(sys.argv[3])); print(leaf.path, leaf.close())\n"
    )
    child = subprocess.Popen(["sleep", "30"])
    try:
        repository = str(Path(__file__).parents[2])
        output = subprocess.check_output(
            [sys.executable, "-c", script, repository, str(own_group), str(child.pid)], text=True
        )
        path, closed = output.split()
        assert closed == "False"
        Leaf(own_group).close()
        assert Path(path).exists()
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 5
    while Path(path).exists() and time.monotonic() < deadline:
        Leaf(own_group).close()
    assert not Path(path).exists()


def test_a_leaf_is_removed_with_the_groups_that_were_made_in_it(own_group):
    leaf = Leaf(own_group)
    (leaf.path / "inner" / "most").mkdir(parents=True)

    assert leaf.close()
    assert not leaf.path.exists()


def test_joining_a_process_that_is_gone_is_a_failure_with_a_code(own_group):
    leaf = Leaf(own_group)
    child = subprocess.Popen(["true"])
    child.wait()
    try:
        with pytest.raises(SourceError) as caught:
            leaf.join(child.pid)
        assert caught.value.code == "CGROUP_FAILED"
    finally:
        leaf.close()
