"""All compatible mitigations train two stages together, on both engines; incompatible ones are rejected."""

from __future__ import annotations

import copy

import pytest
import torch

from harness import registry
from harness.errors import HarnessError
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.model import save
from harness.types import Stage, StageSource

REGISTRY = registry.discover_plugins(
    [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
)
ADAPTERS = ("lora", "orthogonal_lora", "merged_lora", "osf", "oft")
IDS = torch.tensor([[5, 6, 7, 8, 9]])
OPTIONS = {
    "lora": {"rank": 4, "start": "pissa"},
    "orthogonal_lora": {"rank": 4},
    "merged_lora": {"rank": 4},
    "oft": {"block": 8},
    "kl": {"source": "general", "rows": 2},
    "ewc": {"source": "general", "samples": 2},
    "token_masking": {"threshold": 250.0},
    "reweight": {"floor": 1.0},
    "wise_ft": {"alphas": [0.0, 1.0]},
    "freeze": {"layers": 1},
}
REJECTED = {
    None: set(),
    "lora": {"freeze"},
    "orthogonal_lora": {"freeze"},
    "merged_lora": {"freeze", "wise_ft", "ema", "repair"},
    "osf": {"freeze", "wise_ft"},
    "oft": {"freeze", "wise_ft"},
}
"""Adapter -> the mitigations that reject it."""


def create_all(adapter):
    """Create every mitigation but the other adapters, with its defaults and the options above."""
    mitigations = {}
    for name, component in REGISTRY.components["mitigations"].items():
        if name not in ADAPTERS or name == adapter:
            defaults = {key: option.get("default") for key, option in component.options.items()}
            mitigations[name] = REGISTRY.create("mitigations", name, defaults | OPTIONS.get(name, {}))
    return mitigations


def create_compatible(adapter):
    """Return the mitigations that reject none of the others, and the errors of the others by name."""
    mitigations, rejected = create_all(adapter), {}
    for name, mitigation in mitigations.items():
        try:
            mitigation.check_compatible({other: one for other, one in mitigations.items() if other != name})
        except HarnessError as error:
            rejected[name] = error
    return {name: mitigation for name, mitigation in mitigations.items() if name not in rejected}, rejected


@pytest.mark.parametrize("adapter", REJECTED)
def test_only_incompatible_mitigations_are_rejected(adapter):
    _, rejected = create_compatible(adapter)
    assert set(rejected) >= REJECTED[adapter]
    assert all(error.where.startswith(f"mitigations.{name}") and error.hint for name, error in rejected.items())
    assert set(rejected).isdisjoint({*ADAPTERS, "kl", "token_masking", "replay", "mixing", "ema"} - REJECTED[adapter])


@pytest.mark.parametrize("engine", ["transformers", pytest.param("trl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("adapter", REJECTED)
def test_all_compatible_mitigations_train_two_stages_together(
    adapter, engine, run_stages, make_rows, tiny_model, reloaded
):
    base = copy.deepcopy(tiny_model).eval()(IDS).logits
    mitigations_by_name, _ = create_compatible(adapter)
    stages = (
        Stage("one", (StageSource("a", "domain"), StageSource("g", "general"))),
        Stage("two", (StageSource("b", "domain"), StageSource("g", "general"))),
    )
    for mitigation in sorted(mitigations_by_name.values(), key=lambda one: one.priority):
        stages = mitigation.transform_stages(stages)
    assert {part.source for part in stages[1].sources} == {"b", "a", "g"}
    sweeps = []

    def watch(number, model):
        if number < 0:
            sweeps.append([name for one in mitigations_by_name.values() for name in one.variants(model)])

    sources = {"general": make_rows(6, 5)}
    model, logs = run_stages(
        tiny_model,
        mitigations_by_name,
        [make_rows(8), make_rows(8, 1)],
        sources,
        watch=watch,
        engine=engine,
        accumulation=2,
    )
    for log in logs:
        assert all(torch.isfinite(torch.tensor(list(entry.values()))).all() for entry in log)
        assert "penalty/kl" in log[-1]
    assert sweeps == ([["alpha=0", "alpha=1"]] * 2 if "wise_ft" in mitigations_by_name else [[], []])
    after = model.eval()(IDS).logits
    assert float((after - base).detach().abs().max()) > 1e-3
    if adapter:
        with save.adapter_disabled(model):
            assert torch.equal(model(IDS).logits, base)
    assert torch.allclose(reloaded(model)(IDS).logits, after, atol=1e-4)


def test_same_seed_gives_the_same_weights_bit_for_bit(run_stages, make_rows, tiny_model):
    ends = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # global random state does not matter
        mitigations_by_name, _ = create_compatible("lora")
        sources = {"general": make_rows(6, 5)}
        model, _ = run_stages(copy.deepcopy(tiny_model), mitigations_by_name, [make_rows(8)] * 2, sources, seed=seed)
        ends.append(model.eval()(IDS).logits)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
