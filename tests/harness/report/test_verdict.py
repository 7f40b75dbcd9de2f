"""The verdict of a run says what was forgotten first, and claims only what the intervals support."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.gate import GateResult
from harness.report.domain_leakage import LeakedWord
from harness.report.score_change import ScoreChange, verdict_of_difference
from harness.report.verdict import build_verdict
from harness.statistics.intervals import Estimate

KEPT = (0.0, 0.004)
FORGOT = (-0.2, 0.02)
UNKNOWN = (-0.02, 0.02)
IMPROVED = (0.2, 0.02)
BARELY_WORSE = (-0.03, 0.016)  # the interval includes 0, that of a mean of three does not
"""Values and standard errors of a change, for a margin of 0.02."""


def estimate(value, stderr, n=40):
    return Estimate(value, stderr, value - 2 * stderr, value + 2 * stderr, n, "t")


def change(suite, role, difference, name="rougeL", *, margin=0.02, since=None, n=40, higher_is_better=True):
    """Build a change. A score named otherwise than rougeL is not the primary one."""
    measured = estimate(*difference, n)
    level = Estimate(0.4, 0.1, 0.3, 0.5, n)
    return ScoreChange(
        suite,
        role,
        name,
        name,
        "s",
        higher_is_better,
        n,
        level,
        level,
        measured,
        verdict_of_difference(measured, higher_is_better),
        None,
        (level, level),
        margin=margin if name == "rougeL" else None,
        since_learned=None if since is None else estimate(*since, n),
    )


def headline(*changes, gate=()):
    return build_verdict(changes, gate).headline


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([change("a", "domain", IMPROVED), change("b", "general", FORGOT)], "B was partly forgotten; a improved."),
        ([change("a", "domain", IMPROVED), change("b", "general", KEPT)], "A improved; b was kept."),
        ([change("a", "domain", IMPROVED), change("b", "general", IMPROVED)], "A improved; b was kept."),
        (
            [change("a", "domain", IMPROVED), change("b", "general", UNKNOWN)],
            "A improved; 40 items cannot tell whether b was kept.",
        ),
        (
            [change("a", "domain", UNKNOWN), change("b", "general", FORGOT, n=29)],
            "No evidence that a changed; 29 items cannot tell whether b was kept.",
        ),
        ([change("a", "domain", FORGOT)], "A got worse; general ability was not measured."),
        (
            [change("a", "domain", IMPROVED), change("b", "general", FORGOT, "kl_to_base", higher_is_better=None)],
            "A improved; general ability was not judged.",
        ),
        (
            [change("a", "domain", IMPROVED), change("a", "domain", FORGOT, "chrf"), change("b", "general", KEPT)],
            "A improved by some scores and got worse by others; b was kept.",
        ),
        (
            [change("a", "domain", IMPROVED, since=FORGOT), change("b", "domain", IMPROVED),
             change("c", "general", KEPT)],
            "Later stages partly forgot a; a and b improved; c was kept.",
        ),
        (
            [change("a", "domain", IMPROVED, since=KEPT), change("b", "domain", IMPROVED),
             change("c", "general", FORGOT)],
            "C was partly forgotten; a and b improved; later stages kept a.",
        ),
        (
            [change(name, "general", FORGOT) for name in "ab"],
            "A and b were partly forgotten.",
        ),
        (
            [change(name, "general", FORGOT) for name in "abcd"],
            "4 of 4 suites were partly forgotten.",
        ),
        (
            [change("a", "general", FORGOT), change("b", "general", UNKNOWN)],
            "A was partly forgotten.",
        ),
        (
            [change("a", "general", (-0.01, 0.004)), change("b", "general", UNKNOWN)],
            "A got worse; 80 items cannot tell whether a and b together were kept.",
        ),
        (
            [change(name, "general", BARELY_WORSE) for name in "abc"],
            "A, b and c together were partly forgotten.",
        ),
        (
            [change(name, "general", BARELY_WORSE) for name in "abcd"],
            "The mean of 4 suites was partly forgotten.",
        ),
        ([], "Nothing was evaluated: the spec has no suite."),
    ],
)  # fmt: skip
def test_headline_names_losses_before_gains_before_what_was_kept(changes, sentence):
    assert headline(*changes) == sentence


def test_lower_is_better_scores_count_with_the_opposite_sign():
    rose = change("b", "general", (0.2, 0.02), higher_is_better=False)
    assert headline(rose) == "B was partly forgotten."


def test_braces_in_a_suite_name_are_not_formatted():
    assert headline(change("{0}{", "domain", IMPROVED)).startswith("{0}{ improved")
    assert headline(change("{0}{", "general", KEPT)) == "{0}{ was kept."


def test_only_primary_scores_are_judged_and_a_base_divergence_never_is():
    verdict = build_verdict(
        [
            change("b", "general", KEPT),
            change("b", "general", FORGOT, "kl_to_base", higher_is_better=None),
            change("b", "general", FORGOT, "chrf"),
        ]
    )
    assert verdict.general.outcome == "kept"
    assert "kl_to_base" not in verdict.headline + verdict.suite_statements[0].text


def test_retention_is_the_mean_in_margins_with_the_intervals_of_the_suites():
    changes = [
        change("a", "general", (-0.02, 0.01), margin=0.02, n=30),
        change("b", "general", (-0.2, 0.2), margin=0.1, n=50),
    ]
    verdict = build_verdict(changes)
    pooled = verdict.general.change
    assert pooled.value == pytest.approx((-1 - 2) / 2)
    assert pooled.stderr == pytest.approx(math.sqrt(0.5**2 + 2.0**2) / 2)
    assert pooled.n == 80
    halves = [(each.difference.high - each.difference.value) / each.margin for each in changes]
    assert pooled.high - pooled.value == pytest.approx(math.hypot(*halves) / 2)
    assert verdict.general.outcome == "not enough items"


def test_a_single_suite_keeps_its_own_interval():
    (only,) = [change("b", "general", (-0.01, 0.003))]
    verdict = build_verdict([only])
    assert verdict.general.change.low == pytest.approx(only.difference.low / 0.02)
    assert verdict.general.change.high == pytest.approx(only.difference.high / 0.02)


@pytest.mark.slow
def test_kept_and_forgot_are_rarely_wrong():
    """At a true loss of exactly one margin `kept` is wrong, at no loss `forgot` is: each in at most 2.5 % of runs.

    4,000 simulated runs with 3 suites of 40 normal items; the tolerance is 4 standard errors of that rate.
    """
    generator = np.random.default_rng(0)
    runs, items, tolerance = 4000, 40, 4 * math.sqrt(0.025 * 0.975 / 4000)

    def outcome_rate(true_change, outcome):
        hits = 0
        for _ in range(runs):
            changes = []
            for suite, spread in (("a", 0.05), ("b", 0.1), ("c", 0.2)):
                draws = generator.normal(true_change, spread, items)
                mean, stderr = draws.mean(), draws.std(ddof=1) / math.sqrt(items)
                changes.append(change(suite, "general", (mean, stderr)))
            hits += build_verdict(changes).general.outcome == outcome
        return hits / runs

    assert outcome_rate(-0.02, "kept") <= 0.025 + tolerance
    assert outcome_rate(0.0, "forgot") <= 0.025 + tolerance
    assert outcome_rate(-0.2, "forgot") > 0.99


def test_headline_mentions_the_gate_only_when_it_failed():
    def gate_result(passed):
        return GateResult("a/b is to be at least 1", "passed" if passed else "failed", 0.5, 0.4, 1.0, 40)

    kept = change("b", "general", KEPT)
    assert headline(kept, gate=[gate_result(False), gate_result(True)]) == "B was kept; the gate failed."
    assert headline(kept, gate=[gate_result(True)]) == "B was kept."
    (statement,) = build_verdict([kept], [gate_result(True)]).gate_statements
    assert (statement.outcome, statement.text) == ("passed", "gate passed: the only condition is met")
    (statement,) = build_verdict([kept], [gate_result(True), gate_result(False)]).gate_statements
    assert statement.text == "gate failed: 1 of 2 conditions not met, first: a/b is to be at least 1"


def test_statement_of_a_suite_shows_its_primary_score_then_what_else_changed():
    changes = [
        change("a", "domain", UNKNOWN, "bleu"),
        change("a", "domain", IMPROVED),
        change("a", "domain", IMPROVED, "chrf"),
    ]
    (statement,) = build_verdict(changes).suite_statements
    assert statement.text == "a (n = 40): rougeL 0.400 → 0.400, +0.200 [+0.160, +0.240]: better; better too: chrf"
    assert statement.outcome == "better"


def test_a_word_of_the_domain_in_many_general_answers_is_in_the_headline():
    changes = [change("a", "domain", IMPROVED), change("b", "general", KEPT)]
    often, seldom = (LeakedWord("brambolo", count, (("b", "1"),), 40) for count in (5, 2))
    text = build_verdict(changes, leaked_words=[often, seldom]).headline
    assert text == "5 of 40 general answers now contain 'brambolo'; a improved; b was kept."
    assert build_verdict(changes, leaked_words=[seldom]).headline == "A improved; b was kept."
    of_many = replace(often, answers=400)
    assert "brambolo" not in build_verdict(changes, leaked_words=[of_many]).headline, "one answer in 80"
