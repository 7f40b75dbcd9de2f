"""Token masking: only targets of high perplexity are masked; the loss is the mean over the others."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from harness_mitigations.token_masking import TokenMasking, mask_high_perplexity

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage

MEDIAN_PERPLEXITY = 250.0
"""A perplexity that splits the targets of the tiny random model, which is near uniform over 261 tokens."""


def create_masking(**options):
    defaults = {"threshold": MEDIAN_PERPLEXITY, "quantile": None, "source": None, "samples": 64, "under": "base"}
    return TokenMasking(**(defaults | options))


class GradientRecorder(Mitigation):
    priority = 1000

    def __init__(self):
        self.gradients = []

    def add_weight_penalty(self, model):
        self.gradients.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})


def row_nlls(model, row):
    """Return the negative log-likelihoods of a row's trained tokens, computed without padding."""
    ids = torch.tensor([row.input_ids])
    at = [i for i, label in enumerate(row.labels) if i and label != -100]
    with torch.no_grad():
        predicted = model.eval()(ids).logits[0].log_softmax(-1)
    return [-float(predicted[i - 1, row.input_ids[i]]) for i in at]


def test_only_targets_above_the_limit_are_masked():
    labels = torch.tensor([[7, -100, 3, 4], [-100, 5, -100, 6]])
    nll = torch.tensor([0.5, 2.0, 2.1, 1.0])  # of 3, 4, 5 and 6; the 7 begins its row and is not predicted
    masked = mask_high_perplexity(labels, nll, 2.0)
    assert masked.tolist() == [[7, -100, 3, 4], [-100, -100, -100, 6]]
    assert labels.tolist() == [[7, -100, 3, 4], [-100, 5, -100, 6]]


def test_loss_is_the_mean_over_the_remaining_targets(run_stages, make_rows, tiny_model):
    rows = make_rows(4)
    remaining = [nll for row in rows for nll in row_nlls(tiny_model, row) if nll <= math.log(MEDIAN_PERPLEXITY)]
    assert 5 < len(remaining) < sum(row.loss_tokens for row in rows) - 5
    _, (log,) = run_stages(tiny_model, {"token_masking": create_masking()}, [rows])
    assert log[0]["loss"] == pytest.approx(sum(remaining) / len(remaining), rel=1e-6)


def test_a_threshold_above_every_perplexity_equals_plain_training_bit_for_bit(run_stages, make_rows, tiny_model):
    plain, _ = run_stages(copy.deepcopy(tiny_model), {}, [make_rows(8)])
    masked, _ = run_stages(copy.deepcopy(tiny_model), {"token_masking": create_masking(threshold=1e9)}, [make_rows(8)])
    for one, two in zip(plain.parameters(), masked.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_step_does_not_depend_on_accumulation(run_stages, make_rows, tiny_model):
    recorders = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        recorder = GradientRecorder()
        given = {"token_masking": create_masking(), "spy": recorder}
        options = {"batch_size": batch, "accumulation": accumulation, "max_grad_norm": 1e9}
        run_stages(copy.deepcopy(tiny_model), given, [make_rows(8)], **options)
        recorders.append(recorder.gradients[0])
    for other in recorders[1:]:
        assert max(float((recorders[0][name] - other[name]).abs().max()) for name in other) < 1e-7


def test_packing_masks_the_same_targets(run_stages, make_rows, tiny_model):
    options = {"batch_size": 6, "max_grad_norm": 1e9}
    _, (alone,) = run_stages(copy.deepcopy(tiny_model), {"token_masking": create_masking()}, [make_rows(6)], **options)
    options |= {"packing": True, "order": ((0, 1), (2, 3, 4), (5,))}
    _, (packed,) = run_stages(copy.deepcopy(tiny_model), {"token_masking": create_masking()}, [make_rows(6)], **options)
    assert packed[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(("under", "same"), [("base", True), ("current", False)])
def test_base_or_current_model_measures_the_perplexity(under, same, make_rows, tiny_model):
    from harness_mitigations import base_model

    mitigation = create_masking(under=under)
    mitigation.on_stage_start(Stage("one", ()), tiny_model, {}, seed=0)
    batch = base_model.collate_rows(tiny_model, make_rows(4))
    before = mitigation.filter_labels(tiny_model, batch)
    with torch.no_grad():
        for weight in tiny_model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    assert torch.equal(before, mitigation.filter_labels(tiny_model, batch)) is same


def test_a_quantile_keeps_that_share_of_the_sample(make_rows, tiny_model):
    rows = make_rows(30)
    mitigation = create_masking(quantile=0.7, source="given")
    mitigation.on_stage_start(Stage("one", ()), tiny_model, {"given": rows}, seed=0)
    sample_nlls = [nll for row in rows for nll in row_nlls(tiny_model, row)]
    kept_count = sum(nll <= mitigation.state_dict()["limit"] + 1e-6 for nll in sample_nlls)
    assert kept_count / len(sample_nlls) == pytest.approx(0.7, abs=1 / len(sample_nlls))


def test_a_threshold_is_measured_once_and_restored(make_rows, tiny_model):
    first, second = create_masking(quantile=0.5, source="given"), create_masking(quantile=0.5, source="given")
    first.on_stage_start(Stage("one", ()), tiny_model, {"given": make_rows(10)}, seed=0)
    second.load_state_dict(first.state_dict())
    second.on_stage_start(Stage("two", ()), tiny_model, {"given": make_rows(10, 9)}, seed=0)
    assert second.state_dict() == first.state_dict()


def test_a_quantile_without_source_or_rows_is_rejected(tiny_model):
    with pytest.raises(HarnessError, match=r"token_masking\.source: a quantile is given, but no source"):
        create_masking(quantile=0.5).check_compatible({})
    with pytest.raises(HarnessError, match=r"'given' has no row"):
        create_masking(quantile=0.5, source="given").on_stage_start(Stage("one", ()), tiny_model, {"given": ()}, seed=0)
