"""`build_plan` resolves every name of a spec and reports the errors that the schema cannot find."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from itertools import permutations

import pytest

from harness.errors import HarnessError
from harness.interfaces.component import Component
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.spec import plan as plan_module
from harness.spec.schema import compose_schema
from harness.spec.spec import load_spec
from harness.spec_keys import evaluation
from harness.types import Share, Stage, StageSource


@pytest.fixture
def build_small_plan(small_registry, small_spec, write):
    """Build the plan of the small spec with overrides; changes to `small_spec` before the call count."""

    def build_small_plan(*overrides):
        spec = load_spec(write(small_spec), compose_schema(small_registry), overrides)
        return plan_module.build_plan(spec, small_registry)

    return build_small_plan


@pytest.fixture
def get_plan_errors(build_small_plan, tmp_path):
    """Return the lines of the error that building the plan raises."""

    def get_plan_errors(*overrides):
        with pytest.raises(HarnessError) as caught:
            build_small_plan(*overrides)
        assert caught.value.exit_code == 2
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.lines()]

    return get_plan_errors


@pytest.fixture
def add_component(small_registry, monkeypatch):
    """Add a component whose factory is the class `factory` to the small registry."""

    def add_component(kind, name, factory, **fields):
        module = types.ModuleType(f"generated_{name}")
        module.Factory = factory
        monkeypatch.setitem(sys.modules, module.__name__, module)
        small_registry.add(kind, name, Component("Made up.", f"{module.__name__}:Factory", **fields), "acme")

    return add_component


def make_single_stage_mode(*sources):
    """Return a mode class with one stage `only` of these sources."""

    class Single(Mode):
        def stages(self):
            return (Stage("only", sources),)

    return Single


# -- contents of a plan -----------------------------------------------------------------------------------------------


def test_plan_contains_the_stages_of_the_mode_as_the_mitigations_change_them(build_small_plan):
    (stage,) = build_small_plan().stages
    assert stage.name == "mixed"
    assert stage.sources == (StageSource("desk", "domain"), StageSource("chat", "general"))
    assert stage.shares == (Share(("chat",), 0.1),)


def test_stage_contains_every_training_setting(build_small_plan, small_spec):
    small_spec["mode"] = {
        "continual": {
            "stages": [
                {"name": "one", "domain": ["desk"], "general": ["chat"]},
                {"name": "two", "domain": ["desk"], "general": ["chat"], "train": {"learning_rate": 3e-5, "steps": 7}},
            ]
        }
    }
    small_spec["train"] = {"learning_rate": 1e-5, "epochs": 2}
    first, second = build_small_plan().stages
    assert (first.train["learning_rate"], first.train["epochs"], first.train["steps"]) == (1e-5, 2, None)
    assert (second.train["learning_rate"], second.train["epochs"], second.train["steps"]) == (3e-5, 2, 7)
    assert first.train.keys() == second.train.keys()
    assert first.train["scheduler"] == {"cosine": {}}


def test_plan_contains_suites_sources_name_seed_and_template(build_small_plan):
    plan = build_small_plan("seed=5", "evaluate.chat.limit=9", "evaluate.desk.metrics.overlap.size=2")
    desk, chat = plan.suites
    assert (desk.name, desk.source, desk.role, desk.limit) == ("desk", "desk_heldout", "domain", None)
    assert (chat.name, chat.source, chat.role, chat.limit) == ("chat", "chat_heldout", "general", 9)
    assert desk.metrics == {"overlap": {"size": 2}}
    assert desk.max_new_tokens == evaluation.SUITE_KEYS["max_new_tokens"]["default"]
    assert desk.batch_size == evaluation.SUITE_KEYS["batch_size"]["default"]
    assert (plan.name, plan.seed, plan.template) == ("small", 5, ("plain", {}))
    kind, options = plan.sources["desk"]
    assert (kind, options["held_out"], options["path"][-9:]) == ("lines", 0, "/desk.txt")


def test_spec_without_suites_gives_a_plan_without_suites(build_small_plan):
    assert build_small_plan("evaluate={}").suites == ()


def test_mitigations_apply_by_priority_whatever_their_order_in_the_file(build_small_plan, small_spec, add_component):
    class First(Mitigation):
        priority = -5

        def transform_stages(self, stages):
            return tuple(replace(stage, suites=(*stage.suites, "first")) for stage in stages)

    class Second(Mitigation):
        def transform_stages(self, stages):
            return tuple(replace(stage, suites=(*stage.suites, "second")) for stage in stages)

    add_component("mitigations", "zz", First)
    add_component("mitigations", "aa", Second)
    small_spec["evaluate"] |= dict.fromkeys(("first", "second"), small_spec["evaluate"]["desk"])
    suites = set()
    for order in permutations(["aa", "zz", "mixing"]):
        small_spec["mitigations"] = {name: {} for name in order}
        suites |= {stage.suites for stage in build_small_plan().stages}
    assert suites == {("first", "second")}


def test_a_mitigation_may_reject_the_settings_of_a_stage_that_uses_it(
    get_plan_errors, build_small_plan, small_spec, add_component
):
    class Slow(Mitigation):
        def check_stage(self, stage):
            if stage.train["batch_size"] > 7:
                raise HarnessError("mitigations.slow", f"'{stage.name}' has a large batch", "lower train.batch_size")

    add_component("mitigations", "slow", Slow)
    small_spec |= {"mitigations": {"slow": {}}, "train": {"batch_size": 7}}
    build_small_plan()
    small_spec["train"]["batch_size"] = 8
    (line,) = get_plan_errors()
    assert "mitigations.slow: " in line
    assert line.endswith("has a large batch; lower train.batch_size")


def test_mitigation_may_reject_another_and_the_error_names_its_own_key(
    get_plan_errors, build_small_plan, small_spec, add_component
):
    others_of_each_call = []

    class Lonely(Mitigation):
        def check_compatible(self, others):
            others_of_each_call.append(sorted(others))
            if "mixing" in others:
                raise HarnessError("mitigations.lonely.alone", "it excludes every other mitigation", "remove 'mixing'")

    options = {"alone": {"type": "boolean", "default": True, "description": "Excludes others."}}
    add_component(
        "mitigations",
        "lonely",
        type("LonelyWithOption", (Lonely,), {"__init__": lambda self, alone: None}),
        options=options,
    )
    small_spec["mitigations"] = {"lonely": {"alone": True}, "mixing": {}}
    (line,) = get_plan_errors()
    assert line.startswith("spec.json:")
    assert "mitigations.lonely.alone: it excludes every other mitigation; remove 'mixing'" in line
    small_spec["mitigations"] = {"lonely": {}}
    build_small_plan()
    assert others_of_each_call == [["mixing"], []], "a mitigation is not one of its own others"


def test_two_mitigations_that_weigh_tokens_need_to_say_that_they_compose(
    build_small_plan, get_plan_errors, add_component, small_spec
):
    class Alone(Mitigation):
        def token_weights(self, logits, targets, batch):
            return None

    class Composing(Alone):
        composes_token_weights = True

    for name, factory in {"alone": Alone, "first": Composing, "second": Composing}.items():
        add_component("mitigations", name, factory)
    small_spec["mitigations"] = {"alone": {}, "first": {}}
    (line,) = get_plan_errors()
    assert "both 'alone' and 'first' weigh the tokens of the loss, and 'alone' does not compose" in line
    small_spec["mitigations"] = {"first": {}, "second": {}}
    assert build_small_plan().mitigations.keys() == {"first", "second"}


def test_the_usual_learning_rate_is_that_of_the_optimizer(build_small_plan, add_component, small_spec):
    add_component("optimizers", "slow", Mode, typical_ranges={"train.learning_rate": (1e-7, 1e-6)})
    small_spec["train"]["optimizer"] = "slow"
    assert "train.learning_rate is 2e-05; usual is 1e-07 to 1e-06" in build_small_plan().warnings
    add_component("mitigations", "fast", Mitigation, typical_ranges={"train.learning_rate": (1.0, 2.0)})
    small_spec["mitigations"] = {"fast": {}}
    assert not [warning for warning in build_small_plan().warnings if "learning_rate" in warning]


def test_a_mode_may_name_a_scheduler_alone(build_small_plan, add_component, small_spec):
    stage = Stage("only", (StageSource("desk", "domain"),), {"scheduler": "linear"})
    add_component("modes", "single", type("Single", (Mode,), {"stages": lambda self: (stage,)}))
    small_spec["mode"], small_spec["mitigations"] = "single", {}
    assert build_small_plan().stages[0].train["scheduler"] == {"linear": {}}


def test_named_sources_of_a_spec_section_are_listed_once_each(small_registry, small_spec, write):
    small_spec["mitigations"] = {"mixing": {"source": "chat"}, "keep": {"source": "chat"}}
    spec = load_spec(write(small_spec), compose_schema(small_registry))
    assert plan_module.list_named_sources(spec, "mitigations") == ("chat",)
    assert plan_module.list_named_sources(spec, "mode") == ("desk", "chat")
    assert plan_module.list_named_sources(spec) == ("desk", "chat", "desk_heldout", "chat_heldout")


# -- errors that the schema cannot find -------------------------------------------------------------------------------


def test_suite_with_a_missing_source_is_reported_with_location_and_suggestion(get_plan_errors, small_spec):
    small_spec["evaluate"]["desk"]["source"] = "desk_heldouts"
    (line,) = get_plan_errors()
    location, _, rest = line.partition(" ")
    assert location.startswith("spec.json:")
    assert location.endswith(":7")
    assert rest == "evaluate.desk.source: there is no source 'desk_heldouts'; did you mean 'desk_heldout'?"


def test_every_missing_source_is_reported_wherever_it_is_named(get_plan_errors, small_spec):
    small_spec["mode"]["mixed"]["domain"] = ["desk", "xyz"]
    small_spec["mitigations"]["keep"] = {"source": "uvw"}
    small_spec["evaluate"]["chat"]["source"] = "rst"
    lines = get_plan_errors()
    assert [line.split(";")[0].partition(" ")[2] for line in lines] == [
        "mode.mixed.domain.1: there is no source 'xyz'",
        "mitigations.keep.source: there is no source 'uvw'",
        "evaluate.chat.source: there is no source 'rst'",
    ]
    assert all(line.endswith("the spec's sources are: desk, desk_heldout, chat, chat_heldout") for line in lines)


def test_missing_source_in_an_override_is_reported_at_the_override(get_plan_errors):
    assert get_plan_errors("evaluate.desk.source=xyz") == [
        "--set evaluate.desk.source=xyz: there is no source 'xyz'; "
        "the spec's sources are: desk, desk_heldout, chat, chat_heldout"
    ]


@pytest.mark.parametrize("source", ["desk", "chat"])
def test_suite_on_a_trained_source_is_an_error(get_plan_errors, small_spec, source):
    small_spec["evaluate"]["desk"]["source"] = source
    (line,) = get_plan_errors()
    assert f"the suite 'desk' would evaluate the model on training rows of '{source}'" in line
    assert f"""; give sources.{source}.lines "held_out": 0.1, or name a source of held-out rows""" in line
    assert " evaluate.desk.source: " in line


def test_suite_may_use_a_trained_source_that_has_held_out_rows(build_small_plan, small_spec):
    small_spec["sources"]["desk"]["lines"]["held_out"] = 0.1
    small_spec["evaluate"]["desk"]["source"] = "desk"
    assert build_small_plan().suites[0].source == "desk"


@pytest.mark.parametrize(
    "held_out",
    [
        {"share": 0.1},
        {"share": 0.1, "group": "customer"},
        {"share": 0.1, "near_duplicates": True},
        {"column": "date", "from": "2026-01-31"},
        {"column": "version", "from": 3},
    ],
)
def test_rows_are_held_out_by_group_near_duplicates_or_time(build_small_plan, small_spec, held_out):
    small_spec["sources"]["desk"]["lines"]["held_out"] = held_out
    small_spec["evaluate"]["desk"]["source"] = "desk"
    filled = build_small_plan().sources["desk"][1]["held_out"]
    assert filled == {"share": None, "group": None, "near_duplicates": False, "column": None, "from": None, **held_out}


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({}, "the key 'share' is missing"),
        ({"group": "customer"}, 'the key \'share\' is missing; write {"share": 0.1, "group": "COLUMN"}'),
        ({"share": 0.1, "column": "date"}, "'share' and 'column' do not go together"),
        ({"near_duplicates": True, "from": 1}, "'near_duplicates' and 'from' do not go together"),
        ({"column": "date"}, "the key 'from' is missing"),
        ({"from": "2026-01-31"}, "the key 'column' is missing"),
        ({"column": "date", "from": "January"}, "'January' is not a date; write a date such as 2026-01-31"),
    ],
)
def test_held_out_is_either_by_share_or_by_time(get_plan_errors, small_spec, held_out, message):
    small_spec["sources"]["desk"]["lines"]["held_out"] = held_out
    (line,) = get_plan_errors()
    assert " sources.desk.lines.held_out: " in line
    assert message in line


def test_source_that_only_a_mitigation_mixes_in_counts_as_trained(get_plan_errors, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    small_spec["mitigations"]["mixing"]["source"] = "chat_heldout"
    (line,) = get_plan_errors()
    assert "the suite 'chat' would evaluate the model on training rows of 'chat_heldout'" in line


def test_two_stages_with_the_same_name_are_an_error(get_plan_errors, small_spec):
    stage = {"name": "one", "domain": ["desk"], "general": ["chat"]}
    small_spec["mode"] = {"continual": {"stages": [stage, stage]}}
    (line,) = get_plan_errors()
    assert line.endswith(" mode.continual: two stages have the name 'one'; rename one of them")


def test_source_that_occurs_twice_in_a_stage_is_an_error(get_plan_errors, small_spec):
    small_spec["mode"]["mixed"]["general"] = ["chat", "desk"]
    (line,) = get_plan_errors()
    assert line.endswith(
        " mode.mixed: the source 'desk' occurs twice in the stage 'mixed'; name it once, as domain or as general"
    )


def test_mixing_a_source_into_itself_is_an_error(get_plan_errors, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    small_spec["mitigations"]["mixing"]["source"] = "desk"
    (line,) = get_plan_errors()
    assert "the source 'desk' occurs twice in the stage 'domain'" in line


def test_error_of_a_mitigation_is_reported_at_the_mitigation(get_plan_errors, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    (line,) = get_plan_errors()
    location, _, rest = line.partition(" ")
    assert location.startswith("spec.json:")
    assert rest.startswith("mitigations.mixing: the stage 'domain' has no general source; ")


def test_error_of_a_mitigation_in_an_override_is_reported_at_the_override(get_plan_errors):
    (line,) = get_plan_errors('mode={"general": {"sources": ["chat"]}}', 'mitigations={"mixing": {}}')
    assert line.startswith("--set mitigations={\"mixing\": {}}: the stage 'general' trains on general conversations")


def test_unknown_source_in_a_stage_of_a_plugin_mode_is_an_error(get_plan_errors, small_spec, add_component):
    add_component(
        "modes", "single", make_single_stage_mode(StageSource("desk", "domain"), StageSource("nowhere", "general"))
    )
    small_spec["mode"] = "single"
    (line,) = get_plan_errors()
    assert line.endswith(" mode.single: the stage 'only' has no source 'nowhere'; add it to sources")


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (Stage("../../../evil", (StageSource("desk", "domain"),)), "the stage name '../../../evil' is not valid"),
        (Stage("only", (StageSource("desk", "domain"),), {"lr": 1}), "the unknown training setting 'lr'"),
        (Stage("only", (StageSource("desk", "main"),)), "gives the source 'desk' the role 'main'; use one of: domain"),
    ],
)
def test_a_stage_of_a_plugin_with_a_bad_name_setting_or_role_is_an_error(
    get_plan_errors, small_spec, add_component, stage, problem
):
    add_component("modes", "single", type("Single", (Mode,), {"stages": lambda self: (stage,)}))
    small_spec |= {"mode": "single", "mitigations": {}}
    (line,) = get_plan_errors()
    assert " mode.single: " in line
    assert problem in line


def test_inconsistent_shares_of_a_stage_are_an_error(get_plan_errors, small_spec, add_component):
    class Greedy(Mode):
        def stages(self):
            parts = (StageSource("desk", "domain"), StageSource("chat", "general"))
            return (Stage("only", parts, {}, (Share(("desk",), 0.95),)),)

    add_component("modes", "greedy", Greedy)
    small_spec["mode"] = "greedy"
    (line,) = get_plan_errors()
    assert " mitigations: stage only: every source has a share, and the shares sum to 1.05; make them" in line


def test_every_general_source_of_mixing_is_looked_up(build_small_plan, get_plan_errors, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    small_spec["mitigations"] = {"mixing": {"source": ["chat", "chit"]}}
    (line,) = get_plan_errors()
    assert line.endswith("mitigations.mixing.source.1: there is no source 'chit'; did you mean 'chat'?")
    small_spec["sources"]["web"] = small_spec["sources"]["chat"]
    small_spec["mitigations"] = {"mixing": {"source": ["chat", "web"], "weights": {"chat": 3, "web": 1}}}
    assert build_small_plan().stages[0].shares == (Share(("chat", "web"), 0.1, weights=(3, 1)),)


def test_share_of_a_source_that_the_stage_lacks_is_reported_at_the_mode(get_plan_errors, small_spec, add_component):
    class Greedy(Mode):
        def stages(self):
            return (Stage("only", (StageSource("desk", "domain"),), {}, (Share(("chat",), 0.1),)),)

    add_component("modes", "greedy", Greedy)
    small_spec |= {"mode": "greedy", "mitigations": {}}
    (line,) = get_plan_errors()
    assert (
        " mode.greedy: stage only: a share names 'chat', which is not a source of the stage; add it to the stage"
        in line
    )


def test_mode_that_cannot_be_imported_is_reported_with_its_plugin(get_plan_errors, small_spec, small_registry):
    small_registry.add("modes", "gone", Component("Gone.", "no_such_module:Gone"), "acme")
    small_spec["mode"] = "gone"
    assert get_plan_errors() == [
        "mode 'gone' of acme: cannot import 'no_such_module:Gone': ModuleNotFoundError: "
        "No module named 'no_such_module'; reinstall or fix that plugin"
    ]


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_typical_spec_has_no_warnings(build_small_plan):
    assert build_small_plan().warnings == ()


@pytest.mark.parametrize(
    ("override", "warning"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate is 0.001; usual is 1e-05 to 5e-05"),
        ("train.learning_rate=1e-6", "train.learning_rate is 1e-06; usual is 1e-05 to 5e-05"),
        ("train.epochs=10", "train.epochs is 10; usual is 1 to 3"),
        ("train.warmup_ratio=0.5", "train.warmup_ratio is 0.5; usual is 0.03 to 0.1"),
        ("train.weight_decay=1", "train.weight_decay is 1; usual is 0 to 0.1"),
        ("train.max_length=256", "train.max_length is 256; usual is 2048 to 4096"),
        ("evaluate.chat.role=domain", 'no suite has "role": "general", so forgetting is not measured'),
        ("sources.spare.lines.path=x", "the source 'spare' is not used"),
    ],
)
def test_unusual_setting_is_a_warning_and_not_an_error(build_small_plan, override, warning):
    assert build_small_plan(override).warnings == (warning,)


@pytest.mark.parametrize("setting", ["learning_rate=1e-5", "learning_rate=5e-5", "epochs=3", "weight_decay=0"])
def test_ends_of_a_typical_range_give_no_warning(build_small_plan, setting):
    assert build_small_plan(f"train.{setting}").warnings == ()


def test_a_source_that_an_arm_uses_is_used(build_small_plan):
    arms = 'arms={"named": {"naive": {}, "more": {"mode.mixed.general": ["chat", "spare"]}}}'
    assert build_small_plan("sources.spare.lines.path=x", arms).warnings == ()


def test_epochs_that_steps_replace_give_no_warning(build_small_plan):
    assert build_small_plan("train.epochs=10", "train.steps=5").warnings == ()


def test_unusual_setting_in_two_stages_is_reported_once(build_small_plan, small_spec):
    stages = [{"name": name, "domain": ["desk"], "general": ["chat"]} for name in ("one", "two")]
    stages[1]["train"] = {"learning_rate": 1e-2}
    small_spec["mode"] = {"continual": {"stages": stages}}
    assert build_small_plan("train.epochs=9").warnings == (
        "train.epochs is 9; usual is 1 to 3",
        "train.learning_rate is 0.01; usual is 1e-05 to 5e-05",
    )


def test_mitigation_changes_the_typical_range_of_a_setting(build_small_plan, small_spec, add_component):
    add_component("mitigations", "adapter", Mitigation, typical_ranges={"train.learning_rate": (1e-4, 1e-3)})
    small_spec["mitigations"]["adapter"] = {}
    assert build_small_plan("train.learning_rate=5e-4").warnings == ()
    assert build_small_plan().warnings == ("train.learning_rate is 2e-05; usual is 0.0001 to 0.001",)


def test_registering_a_model_that_is_not_logged_to_mlflow_is_an_error(build_small_plan, get_plan_errors):
    (line,) = get_plan_errors("track.mlflow.register=desk-model")
    assert "no model is logged to MLflow, so none can be registered as 'desk-model'" in line
    assert 'set track.mlflow.model to "files" or "transformers"' in line
    assert build_small_plan("track.mlflow.register=desk-model", "track.mlflow.model=files").stages


def test_typical_range_depends_on_the_mitigations_of_the_stage(add_component, build_small_plan):
    """A learning rate that is typical with an adapter is unusual for a stage without one."""
    add_component("mitigations", "narrow", Mitigation, typical_ranges={"train.learning_rate": (1e-4, 1e-3)})

    class PlainAndAdapted(Mode):
        def stages(self):
            parts = (StageSource("desk", "domain"), StageSource("chat", "general"))
            return Stage("plain", parts), Stage("adapted", parts, mitigations={"narrow": {}})

    add_component("modes", "two", PlainAndAdapted)
    warnings = build_small_plan('mode={"two": {}}', "train.learning_rate=5e-4").warnings
    assert [warning for warning in warnings if "learning_rate" in warning] == [
        "train.learning_rate is 0.0005; usual is 1e-05 to 5e-05"
    ]
    warnings = build_small_plan('mode={"two": {}}', "train.learning_rate=2e-5").warnings
    assert [warning for warning in warnings if "learning_rate" in warning] == [
        "train.learning_rate is 2e-05; usual is 0.0001 to 0.001"
    ]
