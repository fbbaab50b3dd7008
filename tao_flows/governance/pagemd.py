"""The page of a bundle as Markdown: bounded in size, and inert whatever flows and tasks are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tao_flows.governance.annex_xi import NOT_ASSESSED, SCOPE
from tao_flows.governance.facts import Facts
from tao_flows.governance.page import UNVOUCHED, Cover, about, is_whole, sampled, short
from tao_flows.governance.samples import Samples
from tao_flows.report.markdown import markdown_text, render_markdown, table_markdown
from tao_flows.report.text import count
from tao_flows.report.weighed import decision_markdown

FILE: Final = "report.md"
_MOST_GAPS: Final = 20
_m = markdown_text


def report_markdown(facts: Facts, annex: Mapping[str, Any], cover: Cover) -> str:
    """The whole page; arguments and errors are those of ``report_html``."""
    samples = facts.sampler.samples()
    run = facts.report.run
    parts = (
        f"# Record of {_m(run.flow)} / {_m(facts.report.name)}",
        _seal(facts, cover),
        render_markdown(facts.report, _weighed(samples)).strip(),
        _annex(annex),
        _files(cover),
        f"## Scope\n\n{_m(SCOPE, 600)}\n\nNot assessed:\n\n" + "\n".join(f"- {_m(each, 200)}" for each in NOT_ASSESSED),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _seal(facts: Facts, cover: Cover) -> str:
    lines = [_m(UNVOUCHED, 300)]
    if cover.warning:
        lines.append(f"**{_m(cover.warning, 200)}**")
    if cover.keyid:
        lines.append(f"    {cover.command}")
    signed = f"signed by the {_m(cover.signer)} with key `{cover.keyid}`" if cover.keyid else "not signed"
    lines.append(f"Bundle {_m(cover.bundle, 250)}, revision {cover.revision}, {signed}.")
    if facts.complete:
        lines.append("The record is complete, as far as is known.")
    else:
        gaps = [f"- **{_m(gap.code)}**: {_m(gap.summary, 300)}" for gap in facts.gaps[:_MOST_GAPS]]
        more = [f"- and {len(facts.gaps) - _MOST_GAPS:,} more"] if len(facts.gaps) > _MOST_GAPS else []
        lines.append("**The record is incomplete.**\n\n" + "\n".join([*gaps, *more]))
    return "## How to check this record\n\n" + "\n\n".join(lines)


def _weighed(samples: Samples) -> str:
    if not samples.total:
        return ""
    note = f"{count(samples.total, 'decision')} of {count(samples.kinds, 'kind')}: {sampled(samples)}"
    made = "\n\n".join(decision_markdown(task, each) for task, each in samples.shown)
    return f"### What was weighed, and what lost\n\n{note}\n\n{made}"


def _annex(annex: Mapping[str, Any]) -> str:
    covers = annex["covers"]
    model = f"Model {_m(covers['model_id'])}. " if covers.get("model_id") else "No model is named. "
    rows = [
        [
            _m(item["title"], 200),
            item["status"],
            _value(item),
            _m(item["method"], 400),
            _m(item["source"], 200),
            _m(item["note"], 700),
        ]
        for item in annex["items"]
    ]
    heads = ("Item", "Status", "Value", "How", "From", "Note")
    legend = "\n".join(f"- *{status}*: {_m(meaning, 200)}" for status, meaning in annex["statuses"].items())
    note = f"{model}{_m(covers.get('note', ''), 300)} Evidence for the provider's documentation, and no verdict."
    return f"## {_m(annex['title'], 200)}\n\n{note}\n\n{table_markdown(heads, rows)}\n\n{legend}"


def _value(item: Mapping[str, Any]) -> str:
    if item["value"] is None:
        return "not known"
    if item["rounded"] is None:
        return _m(f"{item['value']} {item['unit']}".strip(), 2_000)
    bounds = item["interval"]
    between = f" [{_m(short(bounds['low']))}, {_m(short(bounds['high']))}]" if bounds else ""
    exact = "" if is_whole(item) else f"; exactly {_m(item['value'], 120)}"
    return f"**{_m(item['rounded'])} {_m(item['unit'])}**{between}{exact}"


def _files(cover: Cover) -> str:
    rows = [[_m(name, 110), _m(about(name), 200)] for name in cover.files]
    return "## What is in the bundle\n\n" + table_markdown(("File", "What it is"), rows)
