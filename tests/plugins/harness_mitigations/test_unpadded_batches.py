"""Mitigations that run the model get the same numbers without padding, in chunks of the logits, as from padded rows."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from harness_mitigations import base_model
from harness_mitigations.adapted_weights import find_trainable_weights
from harness_mitigations.fisher import compute_diagonal_fisher
from harness_mitigations.kl import build_kl_mitigation
from harness_mitigations.token_masking import TokenMasking
from peft import LoraConfig, get_peft_model

from harness.model import chunked_logits, row_attention
from harness.types import Stage, TokenizedExample


@pytest.fixture(params=["whole", "chunks"])
def any_chunk_size(request, tiny_model, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setattr(chunked_logits, "MAX_LOGIT_BYTES", 3 * 4 * tiny_model.config.vocab_size)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, 250, (n,), generator=generator).tolist() for n in (5, 9, 3, 12)]
    return [TokenizedExample(f"{n:016x}", "g", tuple(i), (-100, -100, *i[2:])) for n, i in enumerate(ids)]


def both_ways(model, compute):
    """Return the result of `compute` on padded batches, and on lines without padding."""
    results = []
    for context in (nullcontext(), row_attention.row_attention(model)):
        with context:
            results.append(compute())
    return results


def test_a_batch_is_one_line_where_the_model_separates_its_rows(tiny_model, rows):
    padded, line = both_ways(tiny_model, lambda: base_model.collate_rows(tiny_model, rows))
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (4, 12)
    assert line["input_ids"].shape == line["position_ids"].shape == (1, 5 + 9 + 3 + 12)


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_fisher_without_padding_is_that_of_padded_rows(labels, tiny_model, rows, any_chunk_size):
    trainable = find_trainable_weights(tiny_model, "x")

    def fisher():
        generator = torch.Generator().manual_seed(1)
        return compute_diagonal_fisher(tiny_model, trainable, rows, labels=labels, batch_size=4, generator=generator)

    padded, line = both_ways(tiny_model, fisher)
    assert max(float(importance.max()) for importance in line.values()) > 0
    for name, importance in padded.items():
        torch.testing.assert_close(line[name], importance, rtol=1e-3, atol=1e-4 * float(importance.max()))


@pytest.mark.parametrize("adapter", [False, True])
def test_kl_without_padding_is_that_of_padded_rows(adapter, tiny_model, rows, any_chunk_size):
    model = tiny_model
    if adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    kl = build_kl_mitigation("general", "g", 3, 1.0, "forward", 1.0, False, "data", "data", {})
    kl.on_stage_start(Stage("one", ()), model, {"g": rows}, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))

    def value_and_gradient():
        kl.added_this_step = False
        model.zero_grad()
        value = kl.extra_loss(model, 1.0)
        value.backward()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        return torch.cat([value.detach()[None], *gradients])

    padded, line = both_ways(model, value_and_gradient)
    assert float(padded[0]) > 0
    torch.testing.assert_close(line, padded, rtol=1e-4, atol=1e-5 * float(padded.abs().max()))


def test_token_masking_measures_the_same_perplexity_without_padding(tiny_model, rows):
    masking = TokenMasking(2.5, 0.5, "g", 4, "base")

    def threshold():
        masking.threshold_is_known = False
        masking.on_stage_start(Stage("one", ()), tiny_model, {"g": rows}, seed=0)
        return masking.max_nll

    padded, line = both_ways(tiny_model, threshold)
    assert line == pytest.approx(padded, rel=1e-4)
