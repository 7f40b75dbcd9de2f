"""The spec that `harness init` drafts: it is valid, passes the check, and each choice has a reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from harness.cli.init import apply_recipe, find_preset
from harness.cli.main import main
from harness.drafting.device_facts import DeviceFacts
from harness.drafting.draft_spec import SMALL_MODEL, DraftRequest, draft_spec, held_out_share
from harness.drafting.file_facts import inspect_file
from harness.drafting.recipes import RECIPES
from harness.errors import HarnessError
from harness.registry import discover_plugins
from harness.spec import schema, spec
from harness.spec.arms import expand_arms, format_overrides
from harness.spec.plan import build_plan

CPU = DeviceFacts("CPU", None, 0, 2, 16.0)
GPU = DeviceFacts("NVIDIA L4", 24.0, 1, 8, 64.0)
CITIES = ("Lyon", "Oslo", "Riga", "Turin", "Ghent", "Graz", "Porto", "Cork", "Brno", "Lodz")
PARTS = ("valve", "filter", "hinge", "cable", "fuse", "lamp", "wheel", "strap", "battery", "screen", "handle", "pump")


def write_tickets(file: Path, rows: int = 100) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer"])
        for number in range(rows):
            city, part = CITIES[number % 10], PARTS[number // 10 % 12]
            writer.writerow([f"When does the {part} reach {city}?", f"{part} to {city}: {number % 7 + 1} days."])
    return file


@pytest.fixture(scope="module")
def registry():
    return discover_plugins()


@pytest.fixture
def facts(registry, tmp_path):
    return inspect_file(registry, write_tickets(tmp_path / "My tickets.csv"))


@pytest.fixture
def general(registry, tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"Name {n} rivers.", "completion": f"{n} Elbe"}) + "\n" for n in range(60))
    )
    return inspect_file(registry, file)


def request(folder, goal="try", general=None, **options):
    return DraftRequest(
        **{"goal": goal, "model": None, "general": general, "preset": None, "folder": folder, **options}
    )


@pytest.mark.parametrize("goal", ["try", "ship", "compare"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_every_draft_is_a_valid_spec(registry, facts, general, tmp_path, goal, device):
    draft = draft_spec([facts], device, request(tmp_path, goal, general))
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(draft.document))
    loaded = spec.load_spec(file, schema.compose_schema(registry))
    plan = build_plan(loaded, registry)
    assert [suite.name for suite in plan.suites] == ["my_tickets", "general"]
    assert bool(loaded.document["gate"]) == (goal == "ship")
    assert bool(loaded.document["arms"]) == (goal == "compare")
    assert (plan.train["steps"] is not None) == (goal == "try")
    explained = {key.split(".")[0] for key, _ in draft.reasons}
    assert {"model", "template", "sources", "mode", "mitigations", "train", "evaluate"} <= explained
    assert all(text and "\n" not in text for _, text in draft.reasons)


@pytest.mark.parametrize("own_general", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_spec(registry, facts, general, tmp_path, name, own_general):
    recipe = RECIPES[name]
    second = inspect_file(registry, write_tickets(tmp_path / "april.csv"))
    options = {"general": general} if own_general else {"preset": find_preset(registry, "en")}
    draft = draft_spec([facts, second], CPU, request(tmp_path, recipe.goal, **options))
    apply_recipe(draft, name, recipe, registry)
    (tmp_path / "spec.json").write_text(json.dumps(draft.document))
    loaded = spec.load_spec(tmp_path / "spec.json", schema.compose_schema(registry))
    plan = build_plan(loaded, registry)
    assert len(plan.stages) == (2 if name == "monthly-update" else 1)
    for arm in expand_arms(loaded.document["arms"], "arms") if loaded.document["arms"] else ():
        changed = [*format_overrides(arm.changes), "arms=null"]
        build_plan(spec.load_spec(tmp_path / "spec.json", schema.compose_schema(registry), changed), registry)


def test_a_recipe_is_merged_into_the_draft(tmp_path, untrained, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "tickets.csv")
    command = ["init", "tickets.csv", "--model", str(untrained), "--recipe"]
    assert main([*command, "full-fine-tuning"]) == 0
    document = json.loads((tmp_path / "spec.json").read_text())
    assert "lora" not in document["mitigations"]
    assert document["train"]["learning_rate"] == 1e-5
    assert main(["recipes"]) == 0
    assert "monthly-update" in capsys.readouterr().out
    for name, message in (
        ("full-finetuning", "there is no such recipe; did you mean 'full-fine-tuning'?"),
        ("monthly-update", "needs 2 files or more"),
    ):
        assert main([*command, name, "--output", "other.json"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_keeps_the_model_that_the_user_names(registry, facts, tmp_path, name):
    recipe = RECIPES[name]
    second = inspect_file(registry, write_tickets(tmp_path / "april.csv"))
    asked = request(tmp_path, recipe.goal, model="org/mine", preset=find_preset(registry, "en"))
    draft = draft_spec([facts, second], GPU, asked)
    apply_recipe(draft, name, recipe, registry, keep_model=True)
    assert draft.document["model"] == {"path": "org/mine"}
    assert ("model", "as you asked") in draft.reasons


def test_a_recipe_drops_the_reasons_of_what_it_changes(registry, facts, tmp_path):
    def reasons(name):
        draft = draft_spec([facts], CPU, request(tmp_path, "ship", preset=find_preset(registry, "en")))
        apply_recipe(draft, name, RECIPES[name], registry)
        return {key for key, _ in draft.reasons}

    every = {"model", "template", "mitigations.lora", "train.learning_rate", "gate"}
    assert reasons("own-file") >= every
    assert reasons("full-fine-tuning") & every == {"model", "template", "gate"}
    assert reasons("lora-24gb") & every == {"mitigations.lora", "gate"}
    assert "gate" not in reasons("compare-shares")


def test_the_model_fits_the_device_and_the_language(facts, tmp_path):
    def model(device, goal="ship", **options):
        return draft_spec([facts], device, request(tmp_path, goal, **options)).document["model"]["path"]

    assert model(CPU) == SMALL_MODEL
    assert model(GPU, goal="try") == SMALL_MODEL
    assert model(GPU) == "Qwen/Qwen3-4B-Instruct-2507"
    assert model(DeviceFacts("H100", 80.0, 1, 8, 64.0)) == "Qwen/Qwen3-8B"
    assert model(GPU, model="org/mine") == "org/mine"


def test_general_rows_and_suites_come_with_the_preset_of_the_language(registry, facts, tmp_path):
    for language, preset, folder in (("en", "general", "/en/"), ("zh", "general-zh", "/zh/")):
        assert find_preset(registry, language) == preset
        document = draft_spec([facts], CPU, request(tmp_path, "ship", preset=preset)).document
        assert document["evaluate"]["general"] == {"preset": preset}
        assert all(folder in path for path in document["sources"]["general"]["jsonl"]["path"])
        assert document["gate"][1]["score"] == "general-everyday/response_nll"


def test_a_comparison_without_general_data_is_refused(facts, tmp_path):
    with pytest.raises(HarnessError, match="only be compared with general conversations"):
        draft_spec([facts], CPU, request(tmp_path, "compare"))


def write_grouped(file: Path, *, gap: bool = False, prompt: str = "", shared: int = 0) -> Path:
    """Write 120 rows of the customers 0 to 11, of which the first `shared` rows have one prompt."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["customer_id", "question", "answer"])
        for number in range(120):
            customer = "" if gap and number == 7 else number % 12
            own_prompt = "Where is my order?" if number < shared else f"When does order {number} arrive?"
            writer.writerow([customer, prompt or own_prompt, f"In {number + 1} days."])
    return file


def test_whole_groups_are_held_out_where_every_row_has_one(registry, tmp_path):
    def draft(file):
        result = draft_spec([inspect_file(registry, file)], CPU, request(tmp_path))
        return result.document["sources"]["rows"]["csv"]["held_out"], [text for _, text in result.reasons]

    held_out, reasons = draft(write_grouped(tmp_path / "rows.csv"))
    assert held_out == {"share": 0.3, "group": "customer_id"}
    assert "rows of one customer_id (12 values) are on one side" in reasons
    # a row without a customer is invalid, and customers with one prompt cannot be separated
    for more in ({"gap": True}, {"prompt": "Please summarize this order."}, {"shared": 12}):
        held_out, reasons = draft(write_grouped(tmp_path / "rows.csv", **more))
        assert held_out == 0.3
        assert "rows share customer_id (12 values): rows of one may be on both sides" in reasons


def test_enough_rows_for_a_verdict_are_held_out():
    assert held_out_share(100_000) == pytest.approx(0.002)
    assert held_out_share(1_000) == pytest.approx(0.1)
    assert held_out_share(200) == pytest.approx(0.2, abs=0.01)
    assert held_out_share(20) == pytest.approx(0.3)


def test_init_writes_a_spec_that_passes_the_check(tmp_path, untrained, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "tickets.csv")
    assert main(["init", "tickets.csv", "--model", str(untrained), "--output", "mine.json"]) == 0
    output = capsys.readouterr().out
    assert "question is the instruction, answer is the output" in output
    assert output.endswith("\nnext: harness run mine.json\n")
    document = json.loads((tmp_path / "mine.json").read_text())
    assert document["sources"]["tickets"]["csv"]["path"] == "tickets.csv"
    assert main(["init", "tickets.csv", "--output", "mine.json"]) == 2
    assert "the file exists; name another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv: the file does not exist"),
        (["tickets.csv", "--prompt", "question"], "--response: prompt and response are named together"),
        (["tickets.csv", "--prompt", "subject", "--response", "answer"], "has no column 'subject'"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "tickets.csv")
    assert main(["init", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "spec.json").exists()
