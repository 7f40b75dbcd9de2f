"""The contract of every registered component, third parties' included."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys

import jsonschema
import pytest

from harness import registry
from harness.interfaces import component as component_module
from harness.interfaces.metric import Metric
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.spec.schema import compose_schema, fill_defaults
from harness.spec_keys import evaluation, training
from harness.types import Item, Stage, StageSource, TokenizedExample

REGISTRY = registry.discover_plugins()
BASES = {"templates": Template, "sources": Source, "modes": Mode, "mitigations": Mitigation, "metrics": Metric}
BUILT_INS = {
    "templates": {"alpaca", "chatml", "llama2", "instruction_zh", "tokenizer", "jinja"}
    | {"llama3", "mistral", "qwen", "gemma", "phi", "zephyr", "vicuna", "deepseek"},
    "sources": {"json", "jsonl", "csv", "parquet", "arrow", "text", "hub", "lm_eval"},
    "modes": {"general", "domain", "mixed", "continual"},
    "mitigations": {
        *("mixing", "replay", "ewc", "l2sp", "lr_scale", "kl", "token_masking", "freeze", "wise_ft", "ema"),
        *("lora", "orthogonal_lora", "osf", "oft"),
    },
    "metrics": {
        "bleu",
        "rouge",
        "chrf",
        "ter",
        "exact_match",
        "token_f1",
        "bertscore",
        "distinct",
        "length_ratio",
        "regex",
        "json_valid",
        "response_perplexity",
        "multiple_choice",
        "bits_per_byte",
        "kl_to_base",
        "agreement_with_base",
    },
}
COMPONENTS = [(kind, name) for kind in BASES for name in sorted(REGISTRY.components[kind])]
for_every_component = pytest.mark.parametrize(
    ("kind", "name"), COMPONENTS, ids=[f"{kind}-{name}" for kind, name in COMPONENTS]
)
modes = pytest.mark.parametrize("name", sorted(REGISTRY.components["modes"]))
mitigations = pytest.mark.parametrize("name", sorted(REGISTRY.components["mitigations"]))
metrics = pytest.mark.parametrize("name", sorted(REGISTRY.components["metrics"]))

STAGE = Stage("one", (StageSource("given", "domain"), StageSource("chat", "general")), {"epochs": 1})
ROWS = [TokenizedExample(f"row-{i}", "given", (5, 6, 7, 8 + i, 9, 2), (-100, -100, 7, 8 + i, 9, 2)) for i in range(3)]


@pytest.fixture
def create(options):
    """Makes a component with its default options."""
    return lambda kind, name: REGISTRY.create(kind, name, options(name, REGISTRY.get(kind, name)))


def load_factory(kind, name):
    module, _, attribute = REGISTRY.get(kind, name).factory.partition(":")
    return getattr(importlib.import_module(module), attribute)


def overrides(component, verb):
    return getattr(type(component), verb) is not getattr(BASES["mitigations"], verb)


# -- declarations -----------------------------------------------------------------------------------------------------


def test_no_plugin_is_broken_and_every_documented_component_exists():
    assert REGISTRY.broken_plugins == []
    missing = {kind: names - set(REGISTRY.components[kind]) for kind, names in BUILT_INS.items()}
    assert missing == {kind: set() for kind in BASES}


@for_every_component
def test_the_name_is_valid_in_a_spec_and_an_override(kind, name):
    assert name.isidentifier()
    jsonschema.validate(name, {"pattern": evaluation.NAME_PATTERN})


@for_every_component
def test_the_summary_is_one_sentence(kind, name):
    summary = REGISTRY.get(kind, name).summary
    assert summary[0].isupper()
    assert summary.endswith(".")
    assert "\n" not in summary
    assert len(summary) <= 120


@for_every_component
def test_the_options_are_a_valid_draft_07_schema(kind, name):
    component = REGISTRY.get(kind, name)
    fragment = {"type": "object", "properties": dict(component.options), "required": list(component.required)}
    jsonschema.Draft7Validator.check_schema(fragment)


@for_every_component
def test_every_option_has_a_description_of_complete_sentences(kind, name):
    described = {key: option.get("description", "") for key, option in REGISTRY.get(kind, name).options.items()}
    assert [key for key, text in described.items() if text[-1:] not in (".", ")")] == []


@for_every_component
def test_every_option_has_a_valid_default_or_is_required(kind, name):
    component = REGISTRY.get(kind, name)
    for key, option in component.options.items():
        assert ("default" in option) != (key in component.required), key
        if "default" in option:
            jsonschema.Draft7Validator(option).validate(option["default"])


@for_every_component
def test_filling_in_defaults_gives_all_options(kind, name, options):
    component = REGISTRY.get(kind, name)
    root = compose_schema(REGISTRY)
    properties = {"type": "object", "properties": dict(component.options)}
    required_options = {key: value for key, value in options(name, component).items() if key in component.required}
    assert set(fill_defaults(required_options, properties, root)) == set(component.options)


# -- factories --------------------------------------------------------------------------------------------------------


@for_every_component
def test_the_factory_takes_exactly_the_options_without_defaults(kind, name):
    component_factory = load_factory(kind, name)
    has_no_constructor = inspect.isclass(component_factory) and component_factory.__init__ is object.__init__
    parameters = {} if has_no_constructor else inspect.signature(component_factory).parameters
    assert set(parameters) == set(REGISTRY.get(kind, name).options)
    for parameter in parameters.values():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), parameter
        assert parameter.default is parameter.empty, parameter


@for_every_component
def test_every_option_is_used(kind, name):
    component = REGISTRY.get(kind, name)
    component_factory = load_factory(kind, name)
    if not component.options:
        assert "__init__" not in vars(component_factory)
        return
    owner = (
        next(cls for cls in component_factory.__mro__ if "__init__" in vars(cls))
        if inspect.isclass(component_factory)
        else component_factory
    )
    tree = ast.parse(inspect.getsource(inspect.getmodule(owner)))
    (body,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.lineno == inspect.getsourcelines(owner.__init__ if inspect.isclass(owner) else owner)[1]
    ]
    used = {node.id for node in ast.walk(body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert set(component.options) - used == set()
    # Every attribute that the constructor sets is used somewhere, in the class or in a base class.
    sources = [
        inspect.getsource(cls)
        for cls in (component_factory.__mro__[:-1] if inspect.isclass(component_factory) else [component_factory])
    ]
    attributes = [node for text in sources for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    used_attributes = {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    stored = {
        node.attr for node in ast.walk(body) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert stored - used_attributes - {"score_names"} == set()  # a metric's names are read by the core


@for_every_component
def test_the_factory_creates_an_instance_of_its_type_from_the_defaults(kind, name, create):
    assert isinstance(create(kind, name), BASES[kind])


def test_listing_components_and_creating_modes_and_mitigations_imports_nothing_heavy():
    program = """
import json, sys
from harness import registry
plugins = registry.discover_plugins()
for kind, name, options in json.loads(sys.argv[1]):
    plugins.create(kind, name, options)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & set(registry.HEAVY_PACKAGES))))
"""
    components = [
        (kind, name, {**{key: option.get("default") for key, option in component.options.items()}, **required})
        for kind in ("modes", "mitigations")
        for name, component in REGISTRY.components[kind].items()
        for required in [{key: ["given"] for key in component.required if kind == "modes"}]
    ]
    assert len(components) >= 7
    output = subprocess.run(
        [sys.executable, "-c", program, json.dumps(components)], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == []


# -- modes ------------------------------------------------------------------------------------------------------------


@modes
def test_a_mode_returns_stages_with_sources_and_known_settings(name, create):
    stages = create("modes", name).stages()
    assert len(stages) >= 1
    for stage in stages:
        assert isinstance(stage, Stage)
        assert len(stage.sources) >= 1
        assert set(stage.train) <= set(training.TRAIN_KEYS)


# -- mitigations ------------------------------------------------------------------------------------------------------


def test_the_defaults_of_a_mitigation_change_nothing():
    import torch

    plain, model, logits = Mitigation(), torch.nn.Linear(2, 2), torch.zeros(3, 4)
    model.weight.grad = torch.ones(2, 2)
    assert plain.transform_stages((STAGE,)) == (STAGE,)
    assert plain.prepare_model(model) is model
    assert plain.on_stage_start(STAGE, model, {}) is None
    assert plain.check_compatible({"lora": plain}) is None
    assert plain.filter_labels(model, {}) is None
    assert plain.extra_loss(model, 1.0) is None
    assert plain.on_step_end(model, 1e-3) is None
    assert list(plain.variants(model)) == []
    assert plain.stage_stats() == {}
    assert plain.penalty_timing == "after_clip"
    assert plain.add_weight_penalty(model) is None
    assert plain.batch_penalty(model, {}, logits) is None
    assert plain.on_stage_end(STAGE, model, ROWS) is None
    assert plain.state_dict() == {}
    assert plain.load_state_dict({}) is None
    assert torch.equal(model.weight.grad, torch.ones(2, 2))
    assert plain.requires_logits is False


@mitigations
def test_only_a_mitigation_that_uses_logits_requests_them(name, create):
    mitigation = create("mitigations", name)
    assert isinstance(mitigation.priority, int)
    assert mitigation.requires_logits is overrides(mitigation, "batch_penalty")


@mitigations
def test_a_mitigation_adds_no_public_method(name, create):
    mitigation = create("mitigations", name)
    public = {
        attribute for attribute, value in vars(type(mitigation)).items() if callable(value) and attribute[0] != "_"
    }
    assert public <= {attribute for attribute in vars(Mitigation) if attribute[0] != "_"}


@mitigations
def test_a_mitigation_keeps_the_names_and_order_of_stages(name, create):
    stages = (STAGE, Stage("two", STAGE.sources, {"epochs": 2}))
    planned = create("mitigations", name).transform_stages(stages)
    assert [stage.name for stage in planned] == ["one", "two"]
    assert {part.source for stage in stages for part in stage.sources} <= {
        part.source for stage in planned for part in stage.sources
    }


def flatten_state(state, path=()):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flatten_state(value, (*path, key))
        else:
            yield (*path, key), value


def run_empty_stage(mitigation, model):
    """Return a mitigation and its model after one stage without an optimizer step, called as in a run."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = mitigation.prepare_model(model)
    mitigation.on_stage_start(STAGE, model, {"given": ROWS, "chat": ROWS})
    mitigation.on_stage_end(STAGE, model, ROWS)
    return model


@mitigations
def test_the_state_of_a_mitigation_round_trips(name, create, tiny_model):
    import torch

    first, second = create("mitigations", name), create("mitigations", name)
    run_empty_stage(first, tiny_model)
    state = first.state_dict()
    for _, value in flatten_state(state):
        assert isinstance(value, torch.Tensor | int | float | str)
    second.load_state_dict(state)
    before, after = dict(flatten_state(state)), dict(flatten_state(second.state_dict()))
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[path])), path


@mitigations
def test_the_same_seed_gives_a_mitigation_the_same_state_and_the_same_model(name, create, tiny_model):
    import copy

    import torch

    pairs = []
    for _ in range(2):
        mitigation = create("mitigations", name)
        model = run_empty_stage(mitigation, copy.deepcopy(tiny_model))
        pairs.append((dict(flatten_state(mitigation.state_dict())), dict(model.named_parameters())))
    for first, second in zip(*pairs, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first)


@mitigations
def test_the_weight_penalty_is_0_while_no_weight_has_changed(name, create, tiny_model):
    import torch

    mitigation = create("mitigations", name)
    model = run_empty_stage(mitigation, tiny_model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    value = mitigation.add_weight_penalty(model)
    assert value is None or float(value) == 0
    assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in weights)


# -- metrics ----------------------------------------------------------------------------------------------------------

MEASUREMENTS = {"kl": 0.4, "agreed": 1, "choices": ("yes", "never"), "gold": 1, "text_nll": 20.0, "text_tokens": 7}
ITEMS = [
    Item(
        "a",
        "Q",
        "the cat sat on the mat",
        "the cat sat on the mat",
        "eos",
        3.0,
        6,
        choice_lls=(-2.0, -1.0),
        **MEASUREMENTS,
    ),
    Item("b", "Q", "it is 4 pm", "it is noon", "eos", 9.5, 4, choice_lls=(-2.0, -5.0), **MEASUREMENTS),
    Item("c", "Q", "never", "", "empty", 2.5, 1, choice_lls=(-2.0, -2.5), **MEASUREMENTS),
]
BETTER = {"json_valid": ("[1]", "[1"), "distinct": ("one two three", "one one one"), "regex": ("the", "a")}
"""A better and a worse answer for the metrics that do not use the reference."""


@metrics
def test_a_metric_declares_its_input_its_scores_and_its_signature(name, create):
    metric = create("metrics", name)
    assert metric.requires in ("answer", "likelihood", "base", "choices", "text")
    assert len(metric.score_names) >= 1
    assert metric.higher_is_better in (True, False, None)
    assert metric.signature() == metric.signature().strip() != ""
    assert "\n" not in metric.signature()


@metrics
def test_the_statistics_of_a_metric_are_additive(name, create):
    metric = create("metrics", name)
    statistics = [metric.statistics(item) for item in ITEMS]
    for score in metric.score_names:
        vectors = [item_statistics[score] for item_statistics in statistics]
        assert len({len(vector) for vector in vectors}) == 1
        assert all(type(number) in (int, float) for vector in vectors for number in vector)
        total = [sum(column) for column in zip(*vectors, strict=True)]
        value = metric.aggregate(score, total)
        assert isinstance(value, float)
        assert value == value
        assert metric.aggregate(score, [2 * number for number in total]) == pytest.approx(value)


@metrics
def test_a_metric_with_is_ratio_is_a_ratio(name, create):
    metric = create("metrics", name)
    for score in metric.score_names:
        if metric.is_ratio(score):
            first, second = 3.0, 8.0
            factor = metric.aggregate(score, (1.0, 1.0))
            assert metric.aggregate(score, (first, second)) == pytest.approx(factor * first / second)


@metrics
def test_is_parsed_returns_a_bool(name, create):
    assert create("metrics", name).is_parsed(ITEMS[0]) in (True, False)


@metrics
def test_check_available_passes_if_everything_is_there(name, create):
    assert create("metrics", name).check_available() is None


@metrics
def test_a_metric_returns_exactly_its_score_names(name, create):
    metric = create("metrics", name)
    assert set(metric.statistics(ITEMS[0])) == set(metric.score_names)


@metrics
def test_a_better_answer_has_a_better_score(name, create):
    metric = create("metrics", name)
    right, wrong = BETTER.get(name, ("the cat sat on the mat", "dogs run"))
    read = {"choices": ("yes", "no"), "gold": 0}
    best = Item("a", "Q", "the cat sat on the mat", right, "eos", 0.5, 6, kl=0.1, agreed=6, text_nll=1.0,
                choice_lls=(-1.0, -9.0), **read)  # fmt: skip
    worst = Item("a", "Q", "the cat sat on the mat", wrong, "eos", 30.0, 6, kl=3.0, agreed=2, text_nll=50.0,
                 choice_lls=(-9.0, -1.0), **read)  # fmt: skip
    for score in metric.score_names:
        high, low = (metric.aggregate(score, metric.statistics(item)[score]) for item in (best, worst))
        if metric.higher_is_better is not None and score != "distinct1":
            assert (high > low) is metric.higher_is_better
        assert high != low


def test_component_types_equal_those_of_the_hooks():
    assert tuple(BASES) == component_module.COMPONENT_TYPES
