"""The loss that balances experts: its value, its gradient, and where it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.architectures import build_architecture

from harness.errors import HarnessError
from harness.training.loss import target_mask
from harness.training.router_loss import RouterLoss, create_router_loss

NAMES = ["mixtral", "qwen3_moe", "gpt_oss", "olmoe"]


def padded_batch(rows):
    length = max(len(row.input_ids) for row in rows)
    batch = {name: torch.zeros((len(rows), length), dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((len(rows), length), -100)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        batch["input_ids"][index, :size] = torch.tensor(row.input_ids)
        batch["attention_mask"][index, :size] = 1
        batch["labels"][index, :size] = torch.tensor(row.labels)
    return batch


def balancing_loss(model, batch):
    """Return E Σ f P over the tokens of all layers that are not padding, by its definition."""
    is_token = batch["attention_mask"].bool().flatten()
    logits = model(**{key: batch[key] for key in ("input_ids", "attention_mask")}, output_router_logits=True)
    probabilities = torch.cat([layer.softmax(-1)[is_token] for layer in logits.router_logits])
    experts, chosen = probabilities.shape[1], model.num_experts_per_tok
    choices = torch.zeros_like(probabilities).scatter(1, probabilities.topk(chosen).indices, 1.0)
    return experts * (choices.mean(0) * probabilities.mean(0)).sum()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_its_definition_without_padding(name, tokenizer, make_rows):
    model, batch = build_architecture(name, tokenizer), padded_batch(make_rows(3))
    router_loss = RouterLoss(model, 0.5)
    with router_loss.recorded():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(router_loss.of_batch(batch), 0.5 * balancing_loss(model, batch), rtol=1e-5, atol=1e-6)


def test_the_first_pass_with_a_graph_counts(tokenizer, make_rows):
    model, (first, second) = build_architecture("mixtral", tokenizer), make_rows(2)
    router_loss = RouterLoss(model, 1.0)
    with router_loss.recorded():
        with torch.no_grad():
            model(input_ids=torch.tensor([second.input_ids]))
        model(input_ids=torch.tensor([first.input_ids]))
        model(input_ids=torch.tensor([second.input_ids]))
    expected = balancing_loss(model, padded_batch([first]))
    torch.testing.assert_close(router_loss.of_batch({}), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["transformers", "trl"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_has_the_gradient_of_both_losses(engine, checkpointing, tokenizer, make_stage, fit):
    model = build_architecture("mixtral", tokenizer)
    settings = {"engine": engine, "batch_size": 12, "max_grad_norm": 1e9, "gradient_checkpointing": checkpointing}
    data = make_stage(**settings, router_loss=0.5)
    batch = padded_batch(data.rows)
    count = target_mask(batch["labels"]).sum()
    reference = copy.deepcopy(model)
    logits = reference(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    balance = balancing_loss(reference, batch)
    (nll + 0.5 * balance).backward()
    assert count > 0

    _, result, gradients = fit(data, model=model)
    assert result.log[0]["loss"] == pytest.approx(float(nll.detach()), rel=1e-5)
    assert result.log[0]["penalty/router"] == pytest.approx(0.5 * float(balance.detach()), rel=1e-5)
    expected = {name: weight.grad for name, weight in reference.named_parameters()}
    assert gradients[0].keys() == expected.keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert not model.config.output_router_logits
    router = next(name for name in expected if "gate.weight" in name)
    without = fit(make_stage(**settings), model=build_architecture("mixtral", tokenizer))[2][0]
    assert not torch.allclose(without[router], expected[router], atol=1e-4)


def test_micro_batches_count_by_their_trained_tokens(tokenizer, make_stage, fit, make_rows):
    rows = make_rows(4)
    model = build_architecture("qwen3_moe", tokenizer)
    parts = [padded_batch(rows[:2]), padded_batch(rows[2:])]
    counts = [int(target_mask(part["labels"]).sum()) for part in parts]
    with torch.no_grad():
        expected = sum(n * float(balancing_loss(model, part)) for n, part in zip(counts, parts, strict=True))
    _, result, _ = fit(make_stage(rows, batch_size=2, accumulation=2, router_loss=1.0), model=model)
    assert result.log[0]["penalty/router"] == pytest.approx(expected / sum(counts), rel=1e-4)


def test_the_coefficient_of_the_config_is_used_on_demand(tokenizer):
    model = build_architecture("mixtral", tokenizer)
    model.config.router_aux_loss_coef = 0.02
    assert RouterLoss(model, "config").coefficient == 0.02
    assert create_router_loss(model, 0) is None
    model.config.router_aux_loss_coef = 0.0
    with pytest.raises(
        HarnessError, match=r"^train.router_loss: the model's config has no router_aux_loss_coef; set it"
    ):
        RouterLoss(model, "config")


def test_an_adapter_is_trained_with_the_loss(tokenizer, make_stage, fit):
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(build_architecture("mixtral", tokenizer), config)
    _, result, gradients = fit(make_stage(router_loss=0.5), model=model)
    assert result.log[0]["penalty/router"] > 0
    assert any(gradient.abs().max() > 0 for gradient in gradients[0].values())


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_a_model_without_the_loss_is_refused(name, tokenizer):
    with pytest.raises(HarnessError, match=r"^train.router_loss: transformers has no loss that balances the experts"):
        RouterLoss(build_architecture(name, tokenizer), 0.1)
