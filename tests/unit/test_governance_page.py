"""The page of a bundle, and the same in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from model_runs import MODEL, START, S, facts_of, put_decision, put_digits, put_run, put_task
from page_reader import Page

from tao_flows.figures import Quality
from tao_flows.governance.annex_xi import annex_xi_support
from tao_flows.governance.facts import Facts
from tao_flows.governance.page import MOST_TASKS, Cover, report_html
from tao_flows.governance.pagemd import report_markdown
from tao_flows.governance.samples import MOST_KINDS
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.records import Incident, TaskState, Who

KEYID = "ab" * 32
COVER = Cover("5f0e-1234", KEYID, "seal", ("annex_xi_support.json", "decisions.jsonl", "report.html", "run.json"))
HOSTILE = "<script>alert(1)</script><img src=x onerror=y>\"'&\x1b\u202e](http://evil)|`"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(str(tmp_path / "ledger.db"))
    yield opened
    opened.close()


def shown(facts: Facts, cover: Cover = COVER) -> Page:
    return Page(report_html(facts, annex_xi_support(facts), cover))


def markdown(facts: Facts, cover: Cover = COVER) -> str:
    return report_markdown(facts, annex_xi_support(facts), cover)


def words(text: str) -> str:
    """Markdown without its marks and unseen joints, on one line."""
    return " ".join(text.replace("\\", "").replace("\u2060", "").replace("\u00a0", " ").replace("*", "").split())


def test_the_page_says_how_to_check_it_and_that_it_cannot_vouch_for_itself(ledger: Ledger) -> None:
    facts = facts_of(ledger, put_digits(ledger))
    for text in (shown(facts).text, words(markdown(facts))):
        assert "cannot vouch for itself" in text
        assert "tao-flows verify 5f0e-1234 --key signing.pub" in text
        assert KEYID in text
        assert "complete, as far as is known" in text
        assert "does not establish compliance" in text
        assert not re.search(r"\bcompliant|certified|verified", text, re.IGNORECASE)


def test_a_bundle_without_a_key_and_one_signed_beside_user_code_are_warned_of(ledger: Ledger) -> None:
    facts = facts_of(ledger, put_digits(ledger))
    unsigned = replace(COVER, keyid=None)
    beside = replace(COVER, signer="in-process")
    for cover, said in ((unsigned, "without a signing key"), (beside, "also ran user code")):
        assert said in shown(facts, cover).text
        assert said in words(markdown(facts, cover))
    assert "tao-flows verify" not in shown(facts, unsigned).text


def test_every_figure_has_its_interval_and_quality(ledger: Ledger) -> None:
    facts = facts_of(ledger, put_digits(ledger))
    for text in (shown(facts).text, words(markdown(facts))):
        assert "123 kJ [111, 136]" in text
        assert "attributed" in text
        assert "1.00 J [0.900, 1.10]" in text
        assert "measured" in text


def test_the_evidence_is_there_with_status_short_and_exact_amounts_and_what_is_not_assessed(ledger: Ledger) -> None:
    facts = facts_of(ledger, put_digits(ledger))
    page = shown(facts)
    for text in (page.text, words(markdown(facts))):
        assert "Evidence supporting Annex XI, Section 1, point 2(d)-(e)" in text
        assert "3.43E-5 MWh" in text
        assert "0.0000342935525033" in text
        assert "One run is not the model's total" in text
        assert "Not assessed" in text
        assert "Annex XI, Section 2" in text
    badges = [attributes["class"] or "" for tag, attributes in page.tags if tag == "span" and "class" in attributes]
    assert {"badge s-automatic", "badge s-provider-input-required"} <= set(badges)


def test_what_is_missing_is_listed(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "gone", 5, state=TaskState.LOST)
    facts = facts_of(ledger, run)
    for text in (shown(facts).text, words(markdown(facts))):
        assert "incomplete" in text
        assert "TASK_LOST" in text


def test_a_decision_shows_the_candidates_that_lost(ledger: Ledger) -> None:
    facts = facts_of(ledger, put_digits(ledger))
    for text in (shown(facts).text, words(markdown(facts))):
        assert "What was weighed, and what lost" in text
        assert "1 decision of 1 kind" in text
        assert "far" in text
        assert "cheapest at once" in text


def test_decisions_that_had_no_choice_are_counted_and_not_shown(ledger: Ledger) -> None:
    run = put_run(ledger)
    record = put_task(ledger, run, "alone", 5)
    put_decision(ledger, record, answer={"pool": "home", "candidates": [{"pool": "home", "feasible": True}]})
    assert "1 decision of 1 kind: none had a choice." in shown(facts_of(ledger, run)).text


def test_a_run_of_many_decisions_and_tasks_gives_a_page_of_bounded_size_that_tells_how_many_there_are(
    ledger: Ledger,
) -> None:
    run = put_run(ledger)
    for number in range(MOST_TASKS + 40):
        record = put_task(ledger, run, f"task {number % 60}", 1_000 + number, instance=str(number))
        put_decision(ledger, record, decided_wall_ns=START + number)
    facts = facts_of(ledger, run)
    page, text = shown(facts), words(markdown(facts))
    assert f"{MOST_TASKS + 40} decisions of 60 kinds" in page.text
    assert f"the last of each of {MOST_KINDS} kinds is shown, {60 - MOST_KINDS} kinds more not" in page.text
    assert f"{60 - MOST_KINDS} kinds more not" in text
    assert "and 40 more" in page.text
    assert len(text) < 300_000


def test_names_cannot_break_out_of_the_page(ledger: Ledger) -> None:
    run = put_run(ledger, HOSTILE, flow=HOSTILE, name=HOSTILE, state=HOSTILE, who=Who(model_id=HOSTILE, team=HOSTILE))
    record = put_task(ledger, run, HOSTILE, 5, source=HOSTILE, quality=Quality.ESTIMATED)
    put_decision(ledger, record, pool=HOSTILE, reason=HOSTILE, action=HOSTILE)
    ledger.put_incident(Incident(HOSTILE, HOSTILE, HOSTILE, START, 1, HOSTILE, HOSTILE))
    facts = facts_of(ledger, run)
    cover = Cover(HOSTILE, KEYID, HOSTILE, (HOSTILE,))
    page = shown(facts, cover)
    assert not {"script", "img", "iframe", "object", "link", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    text = markdown(facts, cover)
    assert "<script" not in text
    assert "](http" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_nothing_is_fetched_and_no_script_may_run(ledger: Ledger) -> None:
    page = shown(facts_of(ledger, put_digits(ledger)))
    (policy,) = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert (policy or "").startswith("default-src 'none'; style-src 'sha256-")
    assert not [a for _, a in page.tags for name in ("src", "href") if (a.get(name) or "").startswith(("http", "//"))]


def test_a_run_of_which_nothing_is_known_has_a_page_that_says_so(ledger: Ledger) -> None:
    run = put_run(ledger, state="running", ended_wall_ns=None, who=Who(model_id=MODEL))
    facts = facts_of(ledger, run)
    for text in (shown(facts).text, words(markdown(facts))):
        assert "No task was recorded" in text
        assert "RUN_NOT_ENDED" in text
        assert "not known" in text


def test_waiting_is_drawn_on_the_time_line(ledger: Ledger) -> None:
    run = put_run(ledger)
    record = put_task(ledger, run, "late", 5, begin_ns=START + 50 * S)
    put_decision(ledger, record, decided_wall_ns=START, action="defer", mode="enforce", enforced=True)
    page = report_html(facts := facts_of(ledger, run), annex_xi_support(facts), COVER)
    assert 'class="deferred"' in page
