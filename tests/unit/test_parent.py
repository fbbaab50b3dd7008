"""Which run a process's own measurement belongs to."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.parent import COUNTED_BY_ENV, PARENT_ENV, key_text, parent_of, parse_key
from tao_flows.records import RunKey, Segment
from tao_flows.telemetry.procfs import this_segment

PROC = Path("/proc")
KEY = RunKey("airflow", "default", "a/b", "run 1", "task", "-1", 2)
TEXT = st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"]))


@given(st.builds(RunKey, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, st.integers(0, 99)))
def test_a_run_key_is_one_text_and_back(key):
    assert parse_key(key_text(key)) == key


def test_a_process_joins_the_run_that_its_environment_names():
    assert parent_of(this_segment(), PROC, {PARENT_ENV: key_text(KEY)}) == KEY
    assert parent_of(this_segment(), PROC, {}) is None
    assert parent_of(this_segment(), PROC, {PARENT_ENV: "rubbish"}) is None


def test_a_process_that_is_counted_where_it_was_started_joins_nothing():
    env = {PARENT_ENV: key_text(KEY), COUNTED_BY_ENV: replace(this_segment(), sequence=3).id}
    assert parent_of(this_segment(), PROC, env) is None
    code = (
        "import sys; from pathlib import Path; from tao_flows.parent import parent_of; "
        "from tao_flows.telemetry.procfs import this_segment; print(parent_of(this_segment(), Path('/proc')))"
    )
    shell = f'{sys.executable} -c "{code}"'
    done = subprocess.run(["sh", "-c", f"{shell}; true"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_a_process_on_another_host_or_beside_the_one_that_counts_joins_the_run():
    ours = this_segment()
    for other in (
        replace(ours, host="elsewhere"),
        replace(ours, boot_id="another"),
        replace(ours, process_started=ours.process_started + 1),
        Segment(ours.host, ours.boot_id, 2**22 + 1, 5),
    ):
        assert parent_of(ours, PROC, {PARENT_ENV: key_text(KEY), COUNTED_BY_ENV: other.id}) == KEY
