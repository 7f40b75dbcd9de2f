"""All mitigations that make sense together train two stages, on both engines, and what does not is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from harness import registry
from harness.errors import HarnessError
from harness.model import save
from harness.types import Stage, StageSource

REGISTRY = registry.discover_plugins(
    [pair for pair in registry.installed_entry_points() if pair[0] == registry.CORE_DISTRIBUTION]
)
ADAPTERS = ("lora", "orthogonal_lora", "osf", "oft")
IDS = torch.tensor([[5, 6, 7, 8, 9]])
OPTIONS = {
    "lora": {"rank": 4, "start": "pissa"},
    "orthogonal_lora": {"rank": 4},
    "oft": {"block": 8},
    "kl": {"source": "general", "rows": 2},
    "ewc": {"source": "general", "samples": 2},
    "token_masking": {"threshold": 250.0},
    "wise_ft": {"alphas": [0.0, 1.0]},
    "freeze": {"layers": 1},
}
REFUSED = {
    None: set(),
    "lora": {"freeze"},
    "orthogonal_lora": {"freeze"},
    "osf": {"freeze", "wise_ft"},
    "oft": {"freeze", "wise_ft"},
}
"""Adapter -> what makes no sense beside it, of the mitigations that say so."""


def everything(adapter):
    """Every mitigation but the other adapters, with its defaults and the options above."""
    made = {}
    for name, component in REGISTRY.components["mitigations"].items():
        if name not in ADAPTERS or name == adapter:
            defaults = {key: option.get("default") for key, option in component.options.items()}
            made[name] = REGISTRY.create("mitigations", name, defaults | OPTIONS.get(name, {}))
    return made


def compatible(adapter):
    """Those that refuse none of the others, and by name why the others do."""
    made, refused = everything(adapter), {}
    for name, mitigation in made.items():
        try:
            mitigation.check_compatible({other: one for other, one in made.items() if other != name})
        except HarnessError as error:
            refused[name] = error
    return {name: mitigation for name, mitigation in made.items() if name not in refused}, refused


@pytest.mark.parametrize("adapter", REFUSED)
def test_only_incompatible_mitigations_are_rejected(adapter):
    _, refused = compatible(adapter)
    assert set(refused) >= REFUSED[adapter]
    assert all(error.where.startswith(f"mitigations.{name}") and error.hint for name, error in refused.items())
    assert set(refused).isdisjoint({*ADAPTERS, "kl", "token_masking", "replay", "mixing", "ema"})


@pytest.mark.parametrize("engine", ["transformers", "trl"])
@pytest.mark.parametrize("adapter", REFUSED)
def test_all_compatible_mitigations_train_two_stages_together(
    adapter, engine, run_stages, make_rows, tiny_model, reloaded
):
    base = copy.deepcopy(tiny_model).eval()(IDS).logits
    together, _ = compatible(adapter)
    stages = (
        Stage("one", (StageSource("a", "domain"), StageSource("g", "general"))),
        Stage("two", (StageSource("b", "domain"), StageSource("g", "general"))),
    )
    for mitigation in sorted(together.values(), key=lambda one: one.priority):
        stages = mitigation.transform_stages(stages)
    assert {part.source for part in stages[1].sources} == {"b", "a", "g"}
    sweeps = []

    def watch(number, model):
        if number < 0:
            sweeps.append([name for one in together.values() for name in one.variants(model)])

    sources = {"general": make_rows(6, 5)}
    model, logs = run_stages(
        tiny_model, together, [make_rows(8), make_rows(8, 1)], sources, watch=watch, engine=engine, accumulation=2
    )
    for log in logs:
        assert all(torch.isfinite(torch.tensor(list(entry.values()))).all() for entry in log)
        assert "penalty/kl" in log[-1]
    assert sweeps == ([["alpha=0", "alpha=1"]] * 2 if "wise_ft" in together else [[], []])
    after = model.eval()(IDS).logits
    assert float((after - base).detach().abs().max()) > 1e-3
    if adapter:
        with save.adapter_disabled(model):
            assert torch.equal(model(IDS).logits, base)
    assert torch.allclose(reloaded(model)(IDS).logits, after, atol=1e-4)


def test_same_seed_gives_the_same_weights_bit_for_bit(run_stages, make_rows, tiny_model):
    ends = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # what came before does not matter
        together, _ = compatible("lora")
        sources = {"general": make_rows(6, 5)}
        model, _ = run_stages(copy.deepcopy(tiny_model), together, [make_rows(8)] * 2, sources, seed=seed)
        ends.append(model.eval()(IDS).logits)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
