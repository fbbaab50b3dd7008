"""What looks like a mistake in rules that can be read: the notes of ``tao-flows rules check``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from tao_flows.rules import EFFECTS, EXEMPT_TRIGGERS, MATCHERS, MODES, Mode, Rule, Rules


@dataclass(frozen=True, slots=True)
class Note:
    """A remark about one rule."""

    rule: int
    """Its number, from 1."""
    code: str
    """``CATCH_ALL``, ``NEVER_MATCHES``, ``ABOVE_MODE``, ``UNKNOWN_BUDGET`` or ``SHADOWED``."""
    text: str

    def to_json(self) -> dict[str, object]:
        """The form that ``tao-flows rules check --json`` prints."""
        return asdict(self)


def check(rules: Rules, mode: Mode, budgets: Collection[str]) -> tuple[Note, ...]:
    """Notes on rules, in their order.

    Args:
        rules: the rules.
        mode: the global mode.
        budgets: the names of the budgets there are.
    """
    notes: list[Note] = []
    for number, rule in enumerate(rules.items, start=1):
        notes += (Note(number, code, text) for code, text in _alone(rule, mode, budgets))
        notes += (Note(number, "SHADOWED", text) for text in _shadowed(number, rule, rules.items[: number - 1]))
    return tuple(notes)


def _alone(rule: Rule, mode: Mode, budgets: Collection[str]) -> Iterator[tuple[str, str]]:
    if _opts_in(rule) and all(_is_any(pattern) for matcher in MATCHERS for pattern in getattr(rule, matcher)):
        yield (
            "CATCH_ALL",
            "opts in everything, also what nobody has looked at; name flows, tags or owners to opt in less",
        )
    if rule.operator and rule.engine == ("prefect",):
        yield "NEVER_MATCHES", "never matches: only Airflow has operators"
    if rule.mode is not None and MODES.index(rule.mode) > MODES.index(mode):
        yield "ABOVE_MODE", f"mode {rule.mode} has no effect beyond the global mode, which is {mode}"
    for name in rule.budgets or ():
        if name not in budgets:
            yield "UNKNOWN_BUDGET", f"no budget is named {name!r}; there are: {', '.join(sorted(budgets)) or 'none'}"


def _opts_in(rule: Rule) -> bool:
    return rule.mode == "enforce" or bool(rule.deferrable or rule.reroutable or rule.budgets)


def _is_any(pattern: str) -> bool:
    return not pattern.strip("*")


def _shadowed(number: int, rule: Rule, earlier: tuple[Rule, ...]) -> Iterator[str]:
    """A line for each earlier rule that decides an effect of ``rule`` wherever ``rule`` matches."""
    open_effects = [effect for effect in EFFECTS if _given(rule, effect)]
    for earlier_number, first in enumerate(earlier, start=1):
        if not _covers(first, rule):
            continue
        taken = [effect for effect in open_effects if _given(first, effect) and _leaves_nothing(first, rule, effect)]
        open_effects = [effect for effect in open_effects if effect not in taken]
        if taken:
            aside = ", exempt runs and sensors aside" if "mode" in taken and _passes_over(first, rule) else ""
            yield (
                f"{' and '.join(taken)}: rule {earlier_number} comes first and matches all that rule {number} does{aside}"
            )


def _given(rule: Rule, effect: str) -> bool:
    return getattr(rule, "max_defer_s" if effect == "max_defer" else effect) is not None


def _leaves_nothing(first: Rule, rule: Rule, effect: str) -> bool:
    # What the first passes over as exempt is left to a rule that does more than observe there.
    return effect != "mode" or _does_no_more_than_observe(rule) or not _passes_over(first, rule)


def _passes_over(first: Rule, rule: Rule) -> bool:
    """Whether ``first`` leaves out exempt runs or sensors that ``rule`` decides on."""
    if _does_no_more_than_observe(first):
        return False
    modest = _does_no_more_than_observe(rule)
    runs = not first.trigger and (modest or not set(rule.trigger).isdisjoint(EXEMPT_TRIGGERS))
    sensors = not any(map(_names_operator, first.operator)) and (modest or any(map(_names_operator, rule.operator)))
    return runs or sensors


def _names_operator(pattern: str) -> bool:
    return bool(pattern.strip("*?"))


def _does_no_more_than_observe(rule: Rule) -> bool:
    return rule.mode in {"off", "observe"}


def _covers(first: Rule, rule: Rule) -> bool:
    """Whether ``first`` is sure to match all that ``rule`` matches."""
    for matcher in MATCHERS:
        wide, narrow = getattr(first, matcher), getattr(rule, matcher)
        if matcher == "name" and any(map(_is_any, wide)):
            continue  # everything has a name
        if wide and not (narrow and all(any(_includes(one, other) for one in wide) for other in narrow)):
            return False
    return True


def _includes(wide: str, narrow: str) -> bool:
    """Whether a pattern matches all that another does; a doubtful case counts as no."""
    if wide == narrow or _is_any(wide):
        return True
    # With stars alone, a pattern that matches the text of another also matches all that the other does.
    return not set(wide) & set("?[") and "[" not in narrow and fnmatchcase(narrow, wide)
