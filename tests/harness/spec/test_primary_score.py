"""The score by which a suite is judged when the spec names none."""

from __future__ import annotations

import pytest

from harness.registry import discover_plugins
from harness.spec.metric_factory import create_metric
from harness.spec.primary_score import ScoredSuite, choose_primary_score, default_axes

REGISTRY = discover_plugins()


@pytest.mark.parametrize(
    ("role", "primary", "names", "expected"),
    [
        ("general", None, ("rouge", "chrf", "response_perplexity"), "response_nll"),
        ("general", None, ("bleu", "ter", "response_perplexity"), "response_nll"),
        ("general", "rougeL", ("rouge", "response_perplexity"), "rougeL"),
        ("general", None, ("rouge", "chrf"), "rouge1"),
        ("general", None, ("exact_match", "rouge", "response_perplexity"), "exact_match"),
        ("general", None, ("response_perplexity", "rouge"), "response_perplexity"),
        ("general", None, ("length_ratio", "kl_to_base"), None),
        ("domain", None, ("rouge", "response_perplexity"), "rouge1"),
        ("general", "nothing", ("rouge",), None),
    ],
)
def test_a_general_suite_is_judged_by_likelihood_instead_of_wording(role, primary, names, expected):
    metrics = {name: create_metric(REGISTRY, name, {}) for name in names}
    chosen = choose_primary_score(role, primary, metrics)
    assert (None if chosen is None else chosen[1]) == expected


@pytest.mark.parametrize(
    ("domain", "general", "gain", "expected"),
    [
        (("rouge",), ("rouge", "response_perplexity"), None, ("own/rouge1", "world/response_nll")),
        (("rouge",), ("rouge",), None, ("own/rouge1", "world/rouge1")),
        (("exact_match",), ("response_perplexity", "exact_match"), None, ("own/exact_match", "world/exact_match")),
        (
            ("exact_match", "rouge"),
            ("rouge", "response_perplexity"),
            "own/rougeL",
            ("own/rougeL", "world/response_nll"),
        ),
        (("length_ratio",), ("rouge",), None, None),
    ],
)
def test_arms_are_not_compared_by_the_wording_of_general_answers(domain, general, gain, expected):
    suites = [
        ScoredSuite(name, role, None, {each: create_metric(REGISTRY, each, {}) for each in names})
        for name, role, names in (("own", "domain", domain), ("world", "general", general))
    ]
    assert default_axes(suites, gain, None) == expected


def test_the_key_primary_of_a_suite_is_the_default_of_the_gain():
    metrics = {"rouge": create_metric(REGISTRY, "rouge", {}), "chrf": create_metric(REGISTRY, "chrf", {})}
    suites = [ScoredSuite("own", "domain", "chrf", metrics), ScoredSuite("world", "general", "chrf", metrics)]
    assert default_axes(suites, None, None) == ("own/chrf", "world/chrf")
    assert default_axes(suites, None, "forgetting:nll") == ("own/chrf", "forgetting:nll")
    assert default_axes(suites[:1], None, "forgetting:nll") == ("own/chrf", "forgetting:nll")
