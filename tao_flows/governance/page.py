"""The page of a bundle: what was recorded of one run, for people, on screen and on paper.

Nothing in it is fetched from anywhere, no script runs, and every name is escaped. It is one of the files that are
signed, and so can say how to check the signature but not what a check would find.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from tao_flows.governance.amounts import short_number
from tao_flows.governance.annex_xi import NOT_ASSESSED, SCOPE
from tao_flows.governance.facts import Facts
from tao_flows.governance.samples import Samples
from tao_flows.report.chart import quality_chart
from tao_flows.report.elements import LIST_LIMIT, badge, capped, cards, cell, document, e, section, state, table, when
from tao_flows.report.html import (
    account_section,
    decisions_section,
    method_section,
    timeline_section,
    violations_section,
)
from tao_flows.report.lanes import timeline
from tao_flows.report.rows import TaskRow
from tao_flows.report.runview import RunView
from tao_flows.report.summary import dearest
from tao_flows.report.tasktable import explained
from tao_flows.report.text import count, cpu_text, energy_text, mix_text, percent, plain
from tao_flows.units import format_duration, format_energy

FILE: Final = "report.html"
MOST_TASKS: Final = 200
"""Tries with a row of their own; the rest is summed in one."""
UNVOUCHED: Final = (
    "A page inside a bundle cannot vouch for itself: whoever can change the bundle can change this page. Verify the "
    "bundle with a public key that came to you another way."
)
UNSIGNED: Final = "This bundle was written without a signing key. It says what was recorded, and never verifies."
IN_PROCESS: Final = "The key was in a process that also ran user code, which could have used it."
CONTENTS: Final = {
    "run.json": "the run: who, when, its tasks, and what is missing",
    "energy.json": "every figure with bounds, quality and origin, and the accounts of the hosts",
    "decisions.jsonl": "every decision with what it weighed, as a hash chain",
    "checkpoints.jsonl": "signed heads of that chain",
    "violations.json": "constraints that were not kept, and failures of the metering",
    "environment.json": "what the processes ran in, without secrets",
    "annex_xi_support.json": "evidence supporting Annex XI, Section 1, point 2(d)-(e), in amounts without rounding",
    "boamps.json": "BoAmps 1.1.0: the energy of an AI task, in kWh",
    "mlbom.cdx.json": "CycloneDX 1.6 ML-BOM: the energy of each activity that made the model, in kWh",
    "ro-crate-metadata.json": "Workflow Run RO-Crate 0.5: this bundle as a research object",
    "openlineage.json": "OpenLineage run event with the facet tao_energy",
    "report.html": "this page",
    "report.md": "the same in Markdown",
    "attestation.dsse.json": "the signature: an in-toto statement over every file and the chain's head",
}
"""What is in a bundle, by file."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9._%+=~@-]+")


@dataclass(frozen=True, slots=True)
class Cover:
    """What a page says of the bundle that it is in."""

    bundle: str
    """Its name, as a directory or before ``.zip``."""
    keyid: str | None
    """Of the key that signs it; None where there is none."""
    signer: str
    """Where that key is: ``worker``, ``seal``, ``in-process`` and so on."""
    files: Sequence[str]
    """The files of the bundle."""
    revision: int = 1

    @property
    def command(self) -> str:
        """What verifies the bundle."""
        # A writer gives no other names; whoever does shall not have them typed into a shell.
        name = self.bundle if _PLAIN.fullmatch(self.bundle) else "BUNDLE"
        return f"tao-flows verify {name} --key signing.pub"

    @property
    def warning(self) -> str:
        """What weakens the signature; empty where nothing does."""
        return UNSIGNED if self.keyid is None else IN_PROCESS if self.signer == "in-process" else ""


def report_html(facts: Facts, annex: Mapping[str, Any], cover: Cover) -> str:
    """The whole page.

    Args:
        facts: of the run.
        annex: ``annex_xi_support`` of it.
        cover: of the bundle that the page is in.

    Raises:
        LedgerError: the decisions cannot be read.
    """
    report = facts.report
    samples = facts.sampler.samples()
    line = timeline(report, samples.timed, (), report.run.ended_wall_ns or facts.read_wall_ns)
    view = RunView(report, timeline=line)
    return document(
        f"Record of {plain(report.run.flow)} / {plain(report.name)}",
        (
            _header(facts),
            _seal(facts, cover),
            _hero(facts),
            _tasks(facts),
            account_section(report) if report.hosts else "",
            timeline_section(view),
            decisions_section(report),
            _weighed(samples),
            violations_section(view),
            _annex(annex),
            _files(cover),
            method_section(view),
            _scope(),
            f"<footer>Run <code>{e(report.run.run_id, 200)}</code> in {e(report.run.engine)}, recorded by tao-flows.</footer>",
        ),
    )


def _header(facts: Facts) -> str:
    run = facts.report.run
    who = (("team", run.who.team), ("owner", run.who.owner), ("model", run.who.model_id))
    parts = [e(facts.report.name), state(run.state), f"started {when(run.started_wall_ns)} UTC"]
    parts += [f"{word} {e(value)}" for word, value in who if value]
    return (
        f'<p class="eyebrow">Record of a run, {e(run.engine)}</p>\n<h1>{e(run.flow)}</h1>\n'
        f'<p class="sub">{" &middot; ".join(parts)}</p>'
    )


def _seal(facts: Facts, cover: Cover) -> str:
    rows = [
        ("Bundle", f"<code>{e(cover.bundle, 250)}</code>, revision {cover.revision:,}"),
        ("Key", f"<code>{e(cover.keyid, 80)}</code>" if cover.keyid else "none"),
        ("Signed by", f"{e(cover.signer)}" if cover.keyid else "nobody"),
        ("Record", _completeness(facts)),
    ]
    facts_list = "".join(f"<dt>{word}</dt><dd>{said}</dd>" for word, said in rows)
    command = f"<pre>{e(cover.command, 400)}</pre>" if cover.keyid else ""
    warning = f"<p><strong>{e(cover.warning, 200)}</strong></p>" if cover.warning else ""
    return section(
        "How to check this record",
        e(UNVOUCHED, 300),
        f'{warning}{command}<dl class="facts">{facts_list}</dl>{_gaps(facts)}',
        "alert" if cover.warning or facts.gaps else "seal",
    )


def _completeness(facts: Facts) -> str:
    if facts.complete:
        return "complete, as far as is known"
    return f'<strong class="state bad">incomplete</strong>, {count(len(facts.gaps), "reason")}'


def _gaps(facts: Facts) -> str:
    if facts.complete:
        return ""
    items = [f"<li><strong>{e(gap.code)}</strong> {e(gap.summary, 300)}</li>" for gap in facts.gaps[:LIST_LIMIT]]
    return f"<h3>What is missing</h3><ul>{capped(items, len(facts.gaps))}</ul>"


def _hero(facts: Facts) -> str:
    report, energy = facts.report, facts.report.energy
    bounds = ""
    if energy.value_uj is not None and not energy.low_uj == energy.value_uj == energy.high_uj:
        bounds = f"between {format_energy(energy.low_j)} and {format_energy(energy.high_j)}"
    words = f"<p>{e(mix_text(report.by_quality_uj))}</p>" if len(report.by_quality_uj) > 1 else ""
    mix = quality_chart(report.by_quality_uj, energy.coverage).inline() + words if energy.value_uj else ""
    cpu = cpu_text(report.cpu_s, lower_bound=any(row.cpu_lower_bound for row in report.tasks))
    tiles = (
        ("Tries of tasks", f"{len(report.tasks):,}", "recorded"),
        ("Duration", e(format_duration(report.wall_s)), "start to end of the run"),
        ("CPU time", e(cpu if report.cpu_s is None else f"{cpu} s"), "of the tasks"),
        ("Overhead", e(percent(report.overhead_share)), "of tasks and overhead"),
        ("Coverage", e(percent(energy.coverage if report.tasks else None)), "of the parts are known"),
        ("Hosts", f"{len(report.hosts):,}", "with an account"),
    )
    return (
        f'<div class="hero"><div><p class="eyebrow">Energy of the tasks</p>'
        f'<div class="big">{e(format_energy(energy.value_j))}</div><p>{bounds}</p><p>{badge(energy.quality)}</p>'
        f"{mix}</div>{cards(tiles)}</div>"
    )


def _tasks(facts: Facts) -> str:
    report = facts.report
    if not report.tasks:
        return section("Energy by task", "No task was recorded.", "")
    rows, rest = dearest(report.tasks, MOST_TASKS)
    drawn = [_task(row) for row in rows]
    last = []
    if rest is not None:
        figures = [cell(e(energy_text(rest.energy)), "r"), cell(badge(rest.energy.quality))]
        share = cell(e(percent(rest.share)), "r")
        last = [[cell(e(rest.label), "name"), cell(""), cell(""), *figures, share, cell(""), cell("")]]
    note = f"{count(len(report.tasks), 'try', 'tries')}, each with its lower and upper bound in brackets. "
    note += f"Known: {energy_text(report.energy)}."
    heads = ("Task", "State", "Pool", "Energy>", "Quality", "Share>", "CPU s>", "Time>")
    return section("Energy by task", e(note, 300), table(heads, drawn, last), "long")


def _task(row: TaskRow) -> list[str]:
    told = row.energy.coverage == 1 or row.energy.value_uj is None
    known = "" if told else f' <small class="soft">{percent(row.energy.coverage)} known</small>'
    return [
        cell(e(row.title), "name"),
        cell(state(row.state.value)),
        cell(e(row.pool)),
        cell(e(energy_text(row.energy)), "r"),
        cell(badge(row.energy.quality) + known),
        cell(e(percent(row.share)), "r"),
        cell(e(cpu_text(row.cpu_s, lower_bound=row.cpu_lower_bound)), "r"),
        cell(e(format_duration(row.wall_s)), "r"),
    ]


def _weighed(samples: Samples) -> str:
    if not samples.total:
        return ""
    note = f"{count(samples.total, 'decision')} of {count(samples.kinds, 'kind')}: "
    note += f"{sampled(samples)} All of them, with every candidate, are in decisions.jsonl."
    drawn = "".join(f"<h3>{e(task)}</h3>{explained(made)}" for task, made in samples.shown)
    return section("What was weighed, and what lost", e(note, 300), drawn, "long")


def sampled(samples: Samples) -> str:
    """How the shown decisions were chosen, in a sentence or two."""
    chosen, shown = samples.kinds - samples.without_choice, len(samples.shown)
    hidden = f", {count(chosen - shown, 'kind')} more not" if chosen > shown else ""
    said = f"the last of each of {count(shown, 'kind')} is shown{hidden}." if shown else "none had a choice."
    alone = f" {count(samples.without_choice, 'kind')} had nothing else to weigh." if samples.without_choice else ""
    return said + (alone if shown else "")


def _annex(annex: Mapping[str, Any]) -> str:
    covers = annex["covers"]
    model = f"Model {covers['model_id']}. " if covers.get("model_id") else "No model is named. "
    legend = "".join(
        f'<dt><span class="badge s-{e(status)}">{e(status)}</span></dt><dd>{e(meaning, 200)}</dd>'
        for status, meaning in annex["statuses"].items()
    )
    heads = ("Item", "Status", "Value", "How it was come by")
    drawn = table(heads, (_item(item) for item in annex["items"]))
    drawn = drawn.replace("<table>", '<table class="items">', 1)
    note = f"{model}{covers.get('note', '')} Evidence for the provider's documentation, and no verdict."
    return section(annex["title"], e(note, 400), f'{drawn}<dl class="words">{legend}</dl>', "items")


def _item(item: Mapping[str, Any]) -> list[str]:
    references = "; ".join(item["references"])
    how = f"{e(item['method'], 400)}<small>{e(item['source'], 200)}</small>"
    if item["note"]:
        how += f"<small>{e(item['note'], 700)}</small>"
    return [
        cell(f"{e(item['title'], 200)}<small>{e(references, 300)}</small>", f"s-{e(item['status'])}"),
        cell(f'<span class="badge s-{e(item["status"])}">{e(item["status"])}</span>'),
        cell(_value(item)),
        cell(how, "wide"),
    ]


def _value(item: Mapping[str, Any]) -> str:
    if item["value"] is None:
        return '<span class="soft">not known</span>'
    if item["rounded"] is None:
        return e(f"{item['value']} {item['unit']}".strip(), 2_000)
    said = f"<strong>{e(item['rounded'])} {e(item['unit'])}</strong>"
    if item["interval"] is not None:
        said += f"<small>between {e(short(item['interval']['low']))} and {e(short(item['interval']['high']))}</small>"
    quality = f"<small>{e(item['quality'])}</small>" if item["quality"] else ""
    exact = "" if is_whole(item) else f"<small>exactly {e(item['value'], 120)} {e(item['unit'])}</small>"
    return f"{said}{quality}{exact}"


def is_whole(item: Mapping[str, Any]) -> bool:
    """Whether an amount in short has all its digits."""
    return Decimal(item["rounded"]) == Decimal(item["value"])


def short(amount: str) -> str:
    """An exact amount to three digits."""
    return short_number(Decimal(amount))


def _files(cover: Cover) -> str:
    rows = ([cell(f"<code>{e(name, 110)}</code>", "name"), cell(e(about(name), 200))] for name in cover.files)
    return section("What is in the bundle", "", table(("File", "What it is"), rows))


def about(name: str) -> str:
    """What a file of a bundle is."""
    return CONTENTS.get(name, "")


def _scope() -> str:
    items = "".join(f"<li>{e(each, 200)}</li>" for each in NOT_ASSESSED)
    return section("Scope", e(SCOPE, 600), f"<h3>Not assessed</h3><ul>{items}</ul>", "scope")
