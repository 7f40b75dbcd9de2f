"""Divergence from the base model over the tokens of the reference responses."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from harness.errors import HarnessError, RunError
from harness.evaluation.likelihood import BaseDivergences, response_divergence, response_nll
from harness.evaluation.row_batch import build_padded_batch
from harness.model import save

REFERENCES = ["yes", "a much longer answer", "天气很好", "six"]


@pytest.fixture
def rows(kit):
    return [kit.example(f"q{number}", reference) for number, reference in enumerate(REFERENCES)]


@pytest.fixture
def evaluate_kl(kit, metric, rows):
    metrics = {name: metric(name) for name in ("kl_to_base", "agreement_with_base")}

    def run(model, *, stage=1, size=4, **options):
        suite, requested = kit.suite(batch_size=size), options.pop("metrics", metrics)
        return kit.evaluate(model, suite, rows, requested, stage=stage, max_length=128, **options)

    return run


@pytest.fixture
def adapted(tiny_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(4.0)  # far enough from uniform that the two directions differ
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(tiny_model, config).eval()


def distributions(model, row):
    """Return the distributions at the trained tokens of a row, as torch.distributions."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].double()
    wanted = torch.tensor(row.labels[1:]) != -100
    return torch.distributions.Categorical(logits=logits[wanted])


@pytest.mark.parametrize("size", [1, 4])
def test_divergence_equals_torch_distributions(evaluate_kl, kit, tokenizer, adapted, rows, size):
    from harness.data.tokenization.tokenize import tokenize_example

    result = evaluate_kl(adapted, base_context=lambda: save.base_model(adapted), size=size)
    for item, example in zip(result.items, rows, strict=True):
        row = tokenize_example(example, "source", kit.template(), tokenizer, 128)
        with adapted.disable_adapter():
            base = distributions(adapted, row)
        tuned = distributions(adapted, row)
        assert item.tokens == row.loss_tokens == len(item.reference.encode()) + 1
        assert item.kl == pytest.approx(torch.distributions.kl_divergence(base, tuned).sum().item(), rel=1e-3)
        assert item.kl != pytest.approx(torch.distributions.kl_divergence(tuned, base).sum().item(), rel=1e-3)
        assert item.agreed == int((base.logits.argmax(-1) == tuned.logits.argmax(-1)).sum())
    kl, agreement = result.scores
    assert kl.value == pytest.approx(sum(item.kl for item in result.items) / sum(item.tokens for item in result.items))
    assert (kl.method, agreement.method) == ("jackknife", "jackknife")
    assert kl.value > 1e-4


def test_base_model_has_no_divergence_and_needs_no_forward_pass(evaluate_kl, tiny_model):
    tiny_model.register_forward_pre_hook(lambda *_: pytest.fail("the base need not be asked about itself"))
    result = evaluate_kl(tiny_model, stage=0)
    assert [score.value for score in result.scores] == [0.0, 1.0]


def test_second_copy_is_the_base_of_full_training(evaluate_kl, tiny_model):
    base = copy.deepcopy(tiny_model).eval()
    same = evaluate_kl(tiny_model.eval(), base_context=lambda: nullcontext(base))
    assert [score.value for score in same.scores] == [pytest.approx(0.0, abs=1e-9), 1.0]
    with torch.no_grad():
        for weight in tiny_model.parameters():
            weight.mul_(1.5)
    assert evaluate_kl(tiny_model, base_context=lambda: nullcontext(base)).scores[0].value > 1e-4


def test_metric_without_base_model_is_rejected(evaluate_kl, tiny_model):
    with pytest.raises(HarnessError, match=r"evaluate\.desk: a metric needs the base model, which is not available"):
        evaluate_kl(tiny_model)


def test_other_base_model_is_measured_again(evaluate_kl, kit, tiny_model, tmp_path):
    base = copy.deepcopy(tiny_model).eval()
    calls = []
    tiny_model.eval().register_forward_pre_hook(lambda *_: calls.append(1))
    for times in (1, 1):  # the second time it is recalled
        evaluate_kl(tiny_model, base_context=lambda: nullcontext(base), folder=tmp_path)
        assert len(calls) == times
    with torch.no_grad():
        next(base.parameters()).add_(1e-3)
    evaluate_kl(tiny_model, base_context=lambda: nullcontext(base), folder=tmp_path)
    assert len(calls) == 2


def test_token_with_base_probability_zero_adds_nothing(tokenizer, tiny_model, rows, kit):
    from harness.data.tokenization.tokenize import tokenize_example

    row = tokenize_example(rows[0], "source", kit.template(), tokenizer, 128)

    class Ruled(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def get_output_embeddings(self):
            return self.model.get_output_embeddings()

        def forward(self, **given):
            output = self.model(**given)
            output.logits[..., 7] = -torch.inf
            return output

    ((apart, _),) = response_divergence(
        tiny_model.eval(), nullcontext(Ruled(tiny_model)), build_padded_batch([(row,)], 0)
    )
    assert 0 < apart < 1
    assert response_nll(tiny_model, build_padded_batch([(row,)], 0))[0] > 0


def test_both_models_count_towards_the_logit_limit():
    assert BaseDivergences.models_in_memory == 2


@pytest.mark.parametrize("broken", ["model", "base"])
def test_divergence_of_or_from_a_model_without_numbers_is_an_error(evaluate_kl, tiny_model, broken):
    base = copy.deepcopy(tiny_model)
    with torch.no_grad():
        {"model": tiny_model, "base": base}[broken].model.norm.weight.fill_(float("nan"))
    with pytest.raises(RunError, match=r"not numbers \(NaN\)"):
        evaluate_kl(tiny_model, base_context=lambda: nullcontext(base))
