"""What people see of a report: terminal, Markdown, HTML, table rows and charts."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunKey, RunRecord, Segment, TaskRecord, TaskState
from tao_flows.report.chart import account_chart, energy_chart
from tao_flows.report.gantt import gantt_chart
from tao_flows.report.html import render_html
from tao_flows.report.lanes import timeline
from tao_flows.report.markdown import render_markdown
from tao_flows.report.model import RunReport, build_report
from tao_flows.report.rows import FlowBody
from tao_flows.report.tables import table_rows
from tao_flows.report.terminal import print_report
from tao_flows.report.text import cpu_text, inert, percent, plain

S = 1_000_000_000
T0 = 1_790_000_000 * S
HOSTILE = "<script>alert(1)</script>|a\n# b [x](javascript:alert(1)) ![i](http://e.example/i.png) \x1b[31m\u202e\"'`"
SVG = "{http://www.w3.org/2000/svg}"


def task(
    name: str,
    energy_uj: int | None = 1_230_000,
    quality: Quality = Quality.ESTIMATED,
    *,
    instance: str = "a",
    state: TaskState = TaskState.COMPLETED,
    start_s: float = 0.0,
) -> TaskRecord:
    bounds = (energy_uj, energy_uj // 2, energy_uj * 2) if energy_uj is not None else (None, None, None)
    if quality is Quality.MEASURED:
        bounds = (energy_uj, energy_uj, energy_uj)
    figure = Figure(*bounds, quality, ("s",)) if energy_uj is not None else Figure.unknown("package-0")
    start_ns = T0 + round(start_s * S)
    cpu = CpuTime(0.4, "perf", covers_children=True)
    ended = state not in {TaskState.LOST, TaskState.RUNNING}
    return TaskRecord(
        RunKey("prefect", "default", "f", "r", name, instance, 1),
        Segment("n", "b", 1, 1),
        state,
        start_ns,
        pool="home",
        ended_wall_ns=start_ns + S if ended else None,
        measurement=Measurement(name, start_ns, 1.0, cpu, figure, (), Account(), model="m/1") if ended else None,
    )


def report(*tasks: TaskRecord, flow: str = "nightly", name: str = "amber-fox", accounted: bool = True) -> RunReport:
    run = RunRecord("prefect", "default", flow, "run-0001", "completed", T0, Segment("n", "b", 1, 1), T0 + 4 * S)
    account = Account(None, 6_000_000, 3_000_000, 1_000_000, None, 2_000_000, Quality.ESTIMATED)
    decisions = [
        DecisionRecord(t.key, T0, "advise", "run", "home", "cheapest", {}, {"penalty": 1.1, "regime": "standard"})
        for t in tasks
    ]
    incidents = [Incident("LEDGER_BUSY", "the ledger was busy", "put it on a local disk", count=2)]
    accounts = [HostAccount("n", account, 4.0, "w")] if accounted else []
    return build_report(replace(run, name=name), tasks, decisions, accounts, incidents)


MIXED = report(
    task("load", 1_230_000),
    task("gpu", 9_000_000, Quality.MEASURED, start_s=1),
    task("share", 2_000_000, Quality.ATTRIBUTED, start_s=1),
    task("dark", None, start_s=2),
    task("gone", state=TaskState.LOST, start_s=2),
    task("broken", 700_000, state=TaskState.FAILED, start_s=3),
)
HOSTILE_REPORT = report(task(HOSTILE), task(HOSTILE, instance="b"), flow=HOSTILE, name=HOSTILE)


def terminal(made: RunReport, width: int) -> str:
    file = io.StringIO()
    print_report(made, Console(file=file, width=width, force_terminal=False))
    return file.getvalue()


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_line_on_the_terminal_is_wider_than_the_terminal(width: int) -> None:
    for made in (MIXED, HOSTILE_REPORT):
        assert max(len(line) for line in terminal(made, width).splitlines()) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_each_task_with_its_interval_quality_and_share(width: int) -> None:
    shown = terminal(MIXED, width)
    line = next(line for line in shown.splitlines() if line.lstrip().startswith("load"))
    assert "1.23 J [0.615, 2.46]" in line
    assert "est." in line or "estimated" in line
    assert "9.5 %" in line
    assert "1.23 W" in line
    assert next(line for line in shown.splitlines() if line.lstrip().startswith("gpu")).count("9.00 J") == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_says_lost_and_unknown_in_words(width: int) -> None:
    lines = terminal(MIXED, width).splitlines()
    assert "unknown" in next(line for line in lines if line.lstrip().startswith("dark"))
    gone = next(line for line in lines if line.lstrip().startswith("gone"))
    assert "lost" in gone
    assert "unknown" in gone
    assert " 0 J" not in gone
    assert "failed" in next(line for line in lines if line.lstrip().startswith("broken"))


def test_the_terminal_shows_the_account_with_what_is_unknown_in_it() -> None:
    shown = terminal(MIXED, 120)
    assert "tasks 3.00 J (50 %)" in shown
    assert "idle unknown" in shown
    assert "LEDGER_BUSY: the ledger was busy (2 times). Remedy: put it on a local disk" in shown
    bar = next(line for line in shown.splitlines() if "▓" in line and "tasks" not in line)
    assert (bar.count("█"), bar.count("▓"), bar.count("░")) == (50, 17, 33)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_line_of_held_gpus_is_shown_where_there_is_one_and_nowhere_else(width: int) -> None:
    gpu = replace(MIXED.account, unattributed_uj=500_000, allocated_idle_uj=1_500_000)
    hosts = (replace(MIXED.hosts[0], account=gpu), replace(MIXED.hosts[0], host="plain"))
    held = replace(MIXED, account=Account.total([gpu, MIXED.account]), hosts=hosts)
    shown = terminal(held, width)
    assert "allocated idle 1.50 J (12 %)" in shown
    assert max(len(line) for line in shown.splitlines()) <= width
    bar = next(line for line in shown.splitlines() if "▓" in line and "tasks" not in line)
    assert len(bar.rstrip()) == min(width - 2, 100)
    assert "| allocated idle | 1.50\u00a0J |" in render_markdown(held)
    page = render_html(held)
    assert "<b>Allocated idle</b>: GPUs that were held and not used" in page
    assert "<th class='r'>Allocated idle</th>" in page.replace('"', "'")
    assert page.count("–</td>") == 1
    drawing = ET.fromstring(account_chart(held.account).inline())
    classes = [r.get("class") for r in drawing.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert classes == ["tasks", "overhead", "allocated_idle", "unattributed"]
    for made in (terminal(MIXED, width), render_markdown(MIXED), render_html(MIXED)):
        assert "llocated idle" not in made


def test_many_mapped_tasks_are_one_line_on_the_terminal() -> None:
    many = report(*(task("embed", 1_000 * n, instance=str(n)) for n in range(1, 101)))
    lines = [line for line in terminal(many, 120).splitlines() if "embed" in line]
    assert len(lines) == 1
    assert "embed ×100" in lines[0]
    assert "5.05 J" in lines[0]
    assert "each 1.00 mJ to 100 mJ" in terminal(many, 120)


def test_control_characters_in_names_do_not_reach_the_terminal() -> None:
    shown = terminal(HOSTILE_REPORT, 120)
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_a_run_without_tasks_is_shown_by_every_renderer() -> None:
    empty = report(accounted=False)
    assert "No task was recorded" in terminal(empty, 80)
    assert "No task was recorded" in render_markdown(empty)
    assert "No task was recorded" in render_html(empty)
    assert table_rows(empty) == []


def test_markdown_has_a_headline_a_table_the_account_and_the_method() -> None:
    # Figures are held together by spaces that do not break.
    made = render_markdown(MIXED).replace("\u00a0", " ")
    assert made.startswith("## Energy of nightly / amber-fox\n\n**12.9 J** [")
    assert "| load | 1.23 J [0.615, 2.46] | estimated | 1.23 W | 0.400 | 9.5 % |" in made
    assert "| gone (**lost**) | unknown | unknown |  | unknown | unknown |" in made
    assert "| broken (**failed**) | 700 mJ" in made
    assert "| idle | unknown | unknown |" in made
    assert "6 × **run** in home (advise, regime standard, penalty 1.100): cheapest" in made
    assert "**LEDGER\\_BUSY**" in made
    assert "Method: tao-flows/attribution/2" in made


def test_the_charts_in_markdown_are_svg_images_that_stand_alone() -> None:
    images = re.findall(r"!\[[^\n]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", render_markdown(MIXED))
    assert len(images) == 2
    for encoded in images:
        root = ET.fromstring(base64.b64decode(encoded, validate=True))
        assert root.tag == f"{SVG}svg"
        assert root.find(f"{SVG}style") is not None
        assert not [e for e in root.iter() if e.tag in {f"{SVG}script", f"{SVG}image", f"{SVG}foreignObject"}]


def test_names_stay_names_in_markdown() -> None:
    made = render_markdown(HOSTILE_REPORT)
    assert "<script" not in made
    assert "](javascript" not in made
    assert "](http" not in made
    assert "http://" not in made
    assert made.count("\n# ") == 0
    rows = [line for line in made.splitlines() if line.startswith("| ") and "1.23" in line]
    assert len(rows) == 2
    # Six cells: a bar inside a name is escaped, and makes no seventh.
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)


def test_markdown_of_very_many_tasks_is_bounded_and_keeps_the_sum() -> None:
    many = report(*(task(f"task-{n}", 1_000_000 + n, instance=str(n)) for n in range(3_000)))
    made = render_markdown(many)
    assert len(made.encode()) < 256 * 1024
    assert sum(line.startswith("| task-") for line in made.splitlines()) == 100
    assert "| and 2,900 more | 2.90\u00a0kJ" in made


def test_markdown_says_where_a_task_went_when_it_did_not_just_run() -> None:
    moved = replace(MIXED.tasks[0], decision=replace(MIXED.tasks[0].decision, action="reroute", pool="gpu"))
    assert "| load → reroute to gpu |" in render_markdown(replace(MIXED, tasks=(moved,)))


def test_every_renderer_shows_the_flows_own_code_under_the_tasks() -> None:
    body = FlowBody(Figure(26_300, 13_100, 52_600, Quality.ESTIMATED, ("s",)), 0.017)
    made = replace(MIXED, flow_body=body)
    row = "| *flow's own code* | 26.3 mJ [13.1, 52.6] | estimated |  | 0.017 |  |"
    assert row in render_markdown(made).replace("\u00a0", " ")
    words = " ".join(" ".join(Page(render_html(made)).words).split())
    assert "flow's own code 26.3 mJ [13.1, 52.6] estimated 0.017" in words
    for width, quality in ((80, "est."), (120, "estimated")):
        line = next(line for line in terminal(made, width).splitlines() if "flow's own code" in line)
        assert line.split("code")[1].split() == ["26.3", "mJ", "[13.1,", "52.6]", quality, "0.017"]
    unknown = report(task("load", 3_000_000))
    for shown in (terminal(unknown, 120), render_markdown(unknown), render_html(unknown)):
        assert "flow's own code" not in shown


def test_table_rows_are_plain_values_with_units_in_their_names() -> None:
    rows = {row["task"]: row for row in table_rows(MIXED)}
    assert rows["load"] == {
        "task": "load",
        "map_index": None,
        "try": 1,
        "state": "completed",
        "energy_j": 1.23,
        "low_j": 0.615,
        "high_j": 2.46,
        "quality": "estimated",
        "power_w": 1.23,
        "cpu_s": 0.4,
        "wall_s": 1.0,
        "share": 0.0951,
        "pool": "home",
        "decision": "run",
    }
    assert rows["gone"]["energy_j"] is None
    assert rows["gone"]["cpu_s"] is None
    assert rows["gone"]["state"] == "lost"


def test_a_long_table_ends_in_one_row_that_sums_the_rest() -> None:
    many = report(*(task(f"t{n}", 1_000_000 + n, instance=str(n)) for n in range(1_200)))
    rows = table_rows(many)
    assert len(rows) == 501
    assert rows[-1]["task"] == "and 700 more"
    assert sum(row["energy_j"] for row in rows) == pytest.approx(many.energy.value_j)


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    page = Page(render_html(MIXED))
    assert not {"script", "link", "iframe", "object", "img", "form", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"src", "style"}]
    for name, value in page.attributes:
        # What can be downloaded is in the page itself.
        assert (name == "href" and (value or "").startswith("data:")) or name == "xmlns" or "//" not in (value or "")


def test_the_pages_policy_allows_its_own_style_sheet_and_nothing_else() -> None:
    made = render_html(MIXED)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    style = re.search(r"<style>(.*?)</style>", made, re.DOTALL)
    assert policy
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1].startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy[1]


def test_the_page_shows_every_part_of_the_report() -> None:
    page = Page(render_html(MIXED))
    words = " ".join(" ".join(page.words).split())
    for part in ("Where the joules went", "Energy by task", "Time line", "Decisions", "How to read these figures"):
        assert part in words
    assert "1.23 J [0.615, 2.46]" in words
    assert "9.00 J measured, 2.00 J attributed, 1.93 J estimated" in words
    assert page.tags.count("svg") == 4


def test_names_stay_names_in_the_page() -> None:
    page = Page(render_html(HOSTILE_REPORT))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in "".join(page.words)
    assert "\u202e" not in "".join(page.words)


def test_a_page_of_very_many_tasks_is_bounded_and_keeps_the_rest_in_a_row() -> None:
    many = report(*(task(f"t{n}", 1_000_000 + n, instance=str(n)) for n in range(3_000)))
    made = render_html(many)
    assert len(made) < 2_000_000
    assert "and 2,700 more" in made


def test_an_estimated_bar_is_hatched_and_a_measured_one_is_not() -> None:
    def hatched(quality: Quality) -> int:
        drawing = ET.fromstring(energy_chart(report(task("t", 1_000_000, quality))).inline())
        return sum("hatch" in (rect.get("fill") or "") for rect in drawing.iter(f"{SVG}rect"))

    assert hatched(Quality.MEASURED) == 0
    assert hatched(Quality.ATTRIBUTED) == 0
    assert hatched(Quality.ESTIMATED) == 2  # the bar and its key in the legend


def test_bars_are_as_long_as_their_joules_and_whiskers_reach_the_bounds() -> None:
    drawing = ET.fromstring(energy_chart(report(task("a", 1_000_000), task("b", 500_000))).inline())
    bars = [
        r for r in drawing.iter(f"{SVG}rect") if r.get("class") == "estimated" and r.find(f"{SVG}title") is not None
    ]
    long, short = (float(bar.get("width") or 0) for bar in bars)
    assert long == pytest.approx(2 * short, abs=0.11)
    whisker = next(p for p in drawing.iter(f"{SVG}path") if p.get("class") == "whisker")
    low, high = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", whisker.get("d") or "").groups()  # type: ignore[union-attr]
    left = float(bars[0].get("x") or 0)
    assert float(low) - left == pytest.approx(long / 2, abs=0.11)
    assert float(high) - left == pytest.approx(long * 2, abs=0.11)


def test_an_unknown_energy_has_words_and_no_bar() -> None:
    drawing = ET.fromstring(energy_chart(report(task("dark", None))).inline())
    assert not [r for r in drawing.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert "unknown (completed)" in [t.text for t in drawing.iter(f"{SVG}text")]


def test_the_parts_of_the_account_fill_the_bar() -> None:
    drawing = ET.fromstring(account_chart(MIXED.account).inline())
    parts = [r for r in drawing.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert [part.get("class") for part in parts] == ["tasks", "overhead", "unattributed"]
    assert sum(float(part.get("width") or 0) for part in parts) == pytest.approx(960, abs=0.2)


def test_what_has_no_end_is_drawn_open_on_the_time_line() -> None:
    drawing = ET.fromstring(gantt_chart(timeline(MIXED, (), (), T0)).inline())
    spans = [r.get("class") for r in drawing.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert spans.count("open") == 2  # the lost task, and the one whose power is unknown
    assert spans.count("span") == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\r\n d", "a b c d"),
        ("\x1b[31mred\x07", "[31mred"),
        ("a\u202eb\u2066c", "abc"),
        ("x" * 100, "x" * 79 + "…"),
        ("\ud800", "\ufffd"),
        ("größe 寸法", "größe 寸法"),
    ],
)
def test_plain_text_is_one_harmless_line(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("cpu_s", "lower_bound", "shown"),
    [
        (0.0, False, "0.000"),
        (0.0002, False, "<0.001"),
        (0.0002, True, "> 0"),
        (0.4, True, "≥ 0.400"),
        (None, True, "unknown"),
        (123.4, False, "123"),
    ],
)
def test_cpu_seconds_are_never_rounded_to_nothing(cpu_s: float | None, lower_bound: bool, shown: str) -> None:
    assert cpu_text(cpu_s, lower_bound=lower_bound) == shown


@pytest.mark.parametrize("text", ["train[3]", "a & b", "a < b", "x@", "load_data", "100 %", "what!"])
def test_inert_text_of_an_ordinary_name_is_the_name(text: str) -> None:
    assert inert(text) == text


@pytest.mark.parametrize("text", ["[a](b)", "![a](b)", "<img src=x>", "http://e.example", "www.e.example", "&lt;"])
def test_inert_text_breaks_what_a_renderer_would_act_on_without_a_visible_change(text: str) -> None:
    assert inert(text) != text
    assert inert(text).replace("\u2060", "") == text


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, "unknown"),
        (0.0, "0.0 %"),
        (0.0004, "< 0.1 %"),
        (0.25, "25 %"),
        (0.9936, "99 %"),
        (0.9961, "99.6 %"),
        (0.99999, "99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_that_is_not_the_whole_is_never_said_to_be(share: float | None, said: str) -> None:
    assert percent(share) == said
