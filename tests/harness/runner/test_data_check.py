"""`harness check`: checks, exit code and table, with a tiny model's tokenizer."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from harness import registry
from harness.cli import main
from harness.errors import HarnessError
from harness.runner import api, data_check
from harness.spec import schema, spec
from harness.terminal.check_table import format_check

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")
LONG = "the old clock in the tall tower of the town hall strikes every hour except at noon on sundays"
PROOFS = [
    "spec",
    "rows",
    "columns",
    "template",
    "held out",
    "masks",
    "lengths",
    "shares",
    "duplicates",
    "contamination",
]


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")


def write(folder, name, rows):
    lines = [json.dumps({"instruction": question, "output": answer}) for question, answer in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def document(tmp_path, monkeypatch, tiny_model, tokenizer):
    """A spec over 13 + 26 training rows and 2 suites, with a tiny model; runs in tmp_path."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    write(
        tmp_path, "desk", [(f"Where is the {word}?", f"{word.title()} sits on shelf {word[::-1]}.") for word in WORDS]
    )
    # Equally long rows, so that a share of tokens can be met.
    write(tmp_path, "chat", [(f"{number:03d}?", f"{number:03d}.") for number in range(100, 152)])
    write(tmp_path, "desk_heldout", [(f"And {word}?", f"See {word}!") for word in WORDS])
    write(tmp_path, "chat_heldout", [("How do you do?", "Well.")])
    names = ("desk", "desk_heldout", "chat", "chat_heldout")
    return {
        "name": "tiny",
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl"}} for name in names},
        "mode": {"mixed": {"domain": ["desk"], "general": ["chat"]}},
        "mitigations": {"mixing": {"share": 0.2}},
        "train": {"epochs": 2, "batch_size": 4, "max_length": 64},
        "evaluate": {
            "desk": {"source": "desk_heldout", "metrics": "response_perplexity"},
            "chat": {"source": "chat_heldout", "role": "general", "metrics": "response_perplexity"},
        },
        "track": {"enabled": False},
    }


def loaded(document, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(document))
    found = registry.discover_plugins()
    return spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found


def made(document, tmp_path):
    return data_check.run_data_checks(*loaded(document, tmp_path))


def states(facts):
    return {one["name"]: one["ok"] for one in facts["proofs"]}


def page(facts, width=80, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(width=width, file=stream, color_system=None).print(format_check(facts))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def told(facts, name):
    (one,) = [one for one in facts["proofs"] if one["name"] == name]
    return one["told"]


def test_clean_data_passes_every_check(document, tmp_path):
    facts = made(document, tmp_path)
    assert facts["ok"]
    assert facts["failures"] == []
    assert states(facts) == dict.fromkeys(PROOFS, True)
    assert len(facts["template"]["fingerprint"]) == 64
    assert facts["masks"] == {"desk": 13, "chat": 52}
    assert json.loads(json.dumps(facts)) == facts


def test_check_and_plan_show_the_groups_on_each_side(document, tmp_path, capsys):
    rows = [
        {"instruction": f"Where is {word} {number}?", "output": f"{word}.", "customer": number}
        for number in range(10)
        for word in WORDS[:3]
    ]
    (tmp_path / "desk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document["sources"]["desk"]["jsonl"]["held_out"] = {"share": 0.2, "group": "customer"}
    document["evaluate"]["desk"]["source"] = "desk"
    facts = made(document | {"mitigations": {}}, tmp_path)
    assert facts["failures"] == []
    assert "; desk by customer: 6 rows in 2 groups held out, 24 rows in 8 for training" in told(facts, "held out")
    assert facts["unread"] == {}
    assert main.main(["plan", "spec.json"]) == 0
    output = capsys.readouterr().out
    assert "held out of training" in output
    (line,) = [line.split() for line in output.splitlines() if line.startswith("desk customer") or "customer" in line]
    assert line == ["desk", "customer", "6", "2", "24", "8"]


def test_unread_keys_and_rendered_rows_are_warnings(document, tmp_path):
    rows = [
        {"instruction": f"<|im_start|>{word}", "output": f"{word}.", "id": number, "images": ["a.png"]}
        for number, word in enumerate(WORDS)
    ]
    (tmp_path / "desk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document["train"]["max_length"] = 200
    facts = made(document | {"mitigations": {}}, tmp_path)
    assert facts["failures"] == []
    assert facts["unread"] == {"desk": {"id": 13, "images": 13}}
    assert told(facts, "columns") == "desk does not use id (13), images (13)"
    assert told(facts, "masks").endswith("no header is; 13 rows contain turn markers as text")
    assert {"columns", "masks"} <= {one["name"] for one in facts["proofs"] if one["warned"]}
    warnings = [warning for warning in facts["warnings"] if warning.startswith("sources.desk")]
    assert [warning.split(" which")[0] for warning in warnings] == [
        "sources.desk: 13 of 13 rows have 'images',",
        "sources.desk: 13 of its 13 training rows contain '<|im_start|>' as text,",
    ]


def test_checks_of_plugins_are_shown_and_stored(document, tmp_path):
    rows = [{"instruction": f"Who is {word}?", "output": f"{word}@acme.com"} for word in WORDS]
    (tmp_path / "desk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = made(document | {"mitigations": {}, "checks": {"pii": {}}}, tmp_path)
    assert facts["failures"] == []
    assert told(facts, "pii") == "sources.desk: findings in 13 of 13 rows"
    assert facts["plugins"]["pii"]["sources.desk"]["rows_found"] == 13
    assert [place for place, result in facts["plugins"]["pii"].items() if not result["rows_found"]] == [
        "sources.chat", "evaluate.desk", "evaluate.chat"
    ]  # fmt: skip
    assert any(line.startswith("sources.desk: the check 'pii' has findings in 13") for line in facts["warnings"])
    facts = made(document | {"mitigations": {}, "checks": {"pii": {"allowed": 0.5, "kinds": ["email"]}}}, tmp_path)
    assert not facts["ok"]
    assert states(facts)["pii"] is False
    (failure,) = facts["failures"]
    assert "raise checks.pii.allowed (0.5) to 1" in failure
    assert "acme" not in failure, "a finding does not repeat personal data"


def test_row_counts_add_up(document, tmp_path):
    facts = made(document, tmp_path)
    used = facts["sources"]["chat"]["used"]
    assert told(facts, "rows") == f"79 read = 14 held out + {13 + used} used + {52 - used} unused"
    facts["sources"]["chat"]["unused"] += 1
    assert not data_check.row_counts_add_up(facts["sources"]["chat"])


def test_lengths_are_those_before_truncation(document, tmp_path):
    desk = made(document, tmp_path)["lengths"]["desk"][0]
    assert desk["rows"] == 13
    assert desk["max_length"] == 64
    assert desk["max"] > 64
    assert desk["rows_cut"] == sum(one["rows"] for one in desk["bins"] if one["low"] > 64)


def test_realized_shares_follow_training_order_by_epoch(document, tmp_path):
    (stage,) = made(document, tmp_path)["stages"]
    (asked,) = stage["asked"]
    assert (asked["sources"], asked["amount"], asked["unit"]) == (["chat"], 0.2, "loss_tokens")
    assert len(stage["epochs"]) == 2
    for epoch in stage["epochs"]:
        assert epoch["chat"]["loss_tokens"] == pytest.approx(0.2, abs=0.005)
        for unit in ("rows", "tokens", "loss_tokens"):
            assert sum(shares[unit] for shares in epoch.values()) == pytest.approx(1)


def test_contaminated_prompt_fails_before_run_starts(document, tmp_path):
    document["train"]["max_length"] = 256
    with (tmp_path / "desk.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": LONG, "output": "Yes."}) + "\n")
    write(tmp_path, "desk_heldout", [(f"{LONG}, doesn't it?", "It does."), ("Who?", "The mayor.")])
    facts = made(document, tmp_path)
    assert not facts["ok"]
    assert states(facts) == {**dict.fromkeys(PROOFS, True), "contamination": False}
    (line,) = facts["failures"]
    assert "desk_heldout.jsonl:1 ~ " in line
    assert "desk.jsonl:14" in line
    with pytest.raises(HarnessError, match="1 of its 2 prompts are in the training data"):
        api.run(*loaded(document, tmp_path))
    assert not (tmp_path / "runs").exists()
    document["checks"] = {"contamination": {"allowed": 0.5}}
    assert made(document, tmp_path)["ok"]


def test_contaminated_rows_are_left_out_of_the_suite_and_named(document, tmp_path):
    document["train"]["max_length"] = 256
    with (tmp_path / "desk.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": LONG, "output": "Yes."}) + "\n")
    write(tmp_path, "desk_heldout", [(f"{LONG}, doesn't it?", "It does."), ("Who?", "The mayor.")])
    (failure,) = made(document, tmp_path)["failures"]
    assert "set checks.contamination.drop to true" in failure
    document["checks"] = {"contamination": {"drop": True}}
    facts = made(document, tmp_path)
    assert facts["ok"]
    (warning,) = [text for text in facts["warnings"] if "contaminated by training" in text]
    assert warning.startswith("the suite 'desk' is evaluated without 1 of 2 rows")
    assert "desk_heldout.jsonl:1" in warning
    assert facts["sources"]["desk_heldout"]["evaluated"] == 1
    write(tmp_path, "desk_heldout", [(f"{LONG}, doesn't it?", "It does.")])
    (failure,) = made(document, tmp_path)["failures"]
    assert "all of its 1 rows are contaminated by training rows" in failure


def test_dropped_training_rows_are_counted_in_check_and_stored_by_a_run(document, tmp_path):
    document["train"] |= {"max_length": 256, "epochs": 1}
    with (tmp_path / "desk.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": LONG, "output": "Yes."}) + "\n")
        file.write((tmp_path / "chat.jsonl").read_text().splitlines()[0] + "\n")
    write(tmp_path, "desk_heldout", [(f"{LONG}, doesn't it?", "It does."), ("Who?", "The mayor.")])
    document["checks"] = {"duplicates": "drop", "contamination": {"drop": "training"}}
    facts = made(document | {"mitigations": {}}, tmp_path)
    assert facts["failures"] == []
    assert told(facts, "rows") == "70 read = 1 duplicates + 3 held out + 1 contaminating + 65 used"
    assert told(facts, "duplicates").startswith("1 equal row(s) dropped; 0 of")
    assert told(facts, "contamination").startswith("1 training row(s) dropped that share text with evaluated rows; ")
    assert facts["sources"]["desk"]["contaminating"] == 1
    api.run(*loaded(document | {"mitigations": {}}, tmp_path))
    (folder,) = (tmp_path / "runs").iterdir()
    data = json.loads((folder / "data.json").read_text())
    assert data["counts"]["desk"]["contaminating"] == 1
    assert any("share their words with evaluated rows" in warning for warning in data["warnings"])
    assert "share their words with evaluated rows" in (folder / "report.html").read_text()
    record = json.loads((folder / "model" / "template.json").read_text())
    is_warned = "**Warning**" in (folder / "model" / "README.md").read_text()
    assert is_warned == (record["chat_template"] != "same")


def test_invalid_data_fails_and_skips_other_checks(document, tmp_path):
    write(tmp_path, "chat_heldout", [("100?", "Well."), ("And 101?", "Well.")])
    facts = made(document, tmp_path)
    assert not facts["ok"]
    assert states(facts) == {"spec": True, "data": False, **dict.fromkeys(PROOFS[1:])}
    assert "chat_heldout.jsonl:1" in facts["failures"][0]
    assert "must not run: 1 error" in page(facts)


def test_near_duplicates_warn_and_too_many_fail(document, tmp_path):
    document["train"]["max_length"] = 256
    with (tmp_path / "desk.jsonl").open("a") as file:
        for end in ".!":
            file.write(json.dumps({"instruction": f"{LONG}{end}", "output": "Yes."}) + "\n")
    facts = made(document, tmp_path)
    assert facts["ok"]
    assert "1 of 67 rows nearly repeats an earlier one" in told(facts, "duplicates")
    assert [one["warned"] for one in facts["proofs"] if one["name"] == "duplicates"] == [True]
    document["checks"] = {"near_duplicates": {"allowed": 0}}
    facts = made(document, tmp_path)
    assert states(facts) == {**dict.fromkeys(PROOFS, True), "duplicates": False}


def test_too_many_fully_truncated_rows_fail_in_check_and_run(document, tmp_path):
    with (tmp_path / "desk.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": " ".join(map(str, range(1000, 1090))), "output": "Yes."}) + "\n")
    facts = made(document, tmp_path)
    assert states(facts) == {**dict.fromkeys(PROOFS, True), "lengths": False}
    assert told(facts, "lengths").endswith("; 1 row(s) have no trained token left")
    assert facts["untrained"]["desk"]["lost"] == 1
    (line,) = facts["failures"]
    assert re.match(r".*spec\.json:\d+:\d+ sources\.desk: 1 of its 14 training rows", line)
    assert line.partition(" ")[2].startswith(
        "sources.desk: 1 of its 14 training rows have no trained token within 64 tokens"
    )
    assert line.endswith("desk.jsonl:14; raise train.max_length, shorten the prompts of these rows or remove them, or "
                         "raise checks.untrained (0.01) to 0.072")  # fmt: skip
    with pytest.raises(HarnessError) as caught:
        api.run(*loaded(document, tmp_path))
    assert caught.value.lines() == [line]
    assert not (tmp_path / "runs").exists()
    document["checks"] = {"untrained": 0.072}
    facts = made(document, tmp_path)
    assert facts["ok"]
    assert any(one.startswith("sources.desk: 1 of its 14 training rows") for one in facts["warnings"])
    document["train"] |= {"steps": 1}
    document["mitigations"] = {"mixing": {"share": 0.0}}
    api.run(*loaded(document, tmp_path))
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "data.json").read_text())["checks"]["untrained"]["desk"]["lost"] == 1


def test_plain_text_suite_is_searched_in_training_rows(document, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": LONG}) + "\n")
    document["sources"]["texts"] = {"jsonl": {"path": "texts.jsonl"}}
    document["evaluate"]["texts"] = {"source": "texts", "metrics": "bits_per_byte"}
    facts = made(document, tmp_path)
    assert told(facts, "contamination") == "nothing of 3 suite(s) occurs in training"
    with (tmp_path / "desk.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "?", "output": f"Well, {LONG}."}) + "\n")
    document["train"]["max_length"] = 512
    facts = made(document, tmp_path)
    assert states(facts)["contamination"] is False
    assert "evaluate.texts: 1 of its 1 texts are in the training data" in facts["failures"][0]


def test_disabled_checks_are_reported(document, tmp_path):
    document["checks"] = {"near_duplicates": None, "contamination": None}
    facts = made(document, tmp_path)
    assert facts["ok"]
    assert states(facts)["contamination"] is None
    assert "near duplicates not searched" in told(facts, "duplicates")


def test_suite_with_other_template_is_an_error_unless_allowed(document, tmp_path):
    document["evaluate"]["chat"]["template"] = "alpaca"
    facts = made(document, tmp_path)
    assert states(facts)["data"] is False
    assert "'alpaca' renders differently from the training template 'chatml'" in facts["failures"][0]
    assert "spec.json:1:" in facts["failures"][0]
    document["checks"] = {"other_template": True}
    facts = made(document, tmp_path)
    assert facts["ok"]
    assert told(facts, "template") == "suites use the template of training, except those with their own: chat"


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_check_table_fits_and_lists_all_checks(document, tmp_path, width, encoding):
    shown = page(made(document, tmp_path), width, encoding)
    assert max(map(len, shown.splitlines())) <= width
    mark = "✓" if encoding == "utf-8" else "+"
    lines = [line.split() for line in shown.splitlines() if line.startswith(f"{mark} ")]
    assert [line[1] for line in lines] == [name.split()[0] for name in PROOFS if name != "lengths"]
    assert shown.splitlines()[-1] == "tiny: may run"


def test_check_command_prints_table_and_exits_with_result(document, tmp_path, capsys):
    loaded(document, tmp_path)
    assert main.main(["check", str(tmp_path / "spec.json")]) == 0
    assert "tiny: may run" in capsys.readouterr().out
    write(tmp_path, "chat_heldout", [("100?", "Well.")])
    assert main.main(["check", str(tmp_path / "spec.json"), "--json"]) == 2
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert [f"harness: {line}" for line in facts["failures"]] == shown.err.splitlines()[-1:]


def test_trained_model_stores_its_template_and_refuses_another(document, tmp_path):
    document["train"] |= {"steps": 1, "learning_rate": 1e-3}
    document["mitigations"] = {"mixing": {"share": 0.0}}
    api.run(*loaded(document, tmp_path))
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "data.json").read_text())["checks"]["near_duplicates"]["repeats"] == 0
    document["model"]["path"] = str(folder / "model")
    assert made(document, tmp_path)["ok"]
    document["template"] = "alpaca"
    facts = made(document, tmp_path)
    assert "trained with the template 'chatml', and 'alpaca' renders differently" in facts["failures"][0]
    document["checks"] = {"other_template": True}
    document["train"]["max_length"] = 512
    assert made(document, tmp_path)["ok"]


def test_suite_is_evaluated_with_its_own_template(document, tmp_path):
    document["train"] |= {"steps": 1}
    document["mitigations"] = {"mixing": {"share": 0.0}}
    document["checks"] = {"other_template": True}
    scores = []
    for template in ("chatml", "alpaca"):
        document["evaluate"]["chat"]["template"] = template
        report = api.run(*loaded(document, tmp_path))
        scores.append({(one.suite, one.name): one.before.value for one in report.changes})
    changed = {key[0] for key in scores[0] if scores[0][key] != scores[1][key]}
    assert changed == {"chat"}


@pytest.mark.parametrize("command", ["check", "run"])
def test_rows_that_a_metric_cannot_measure_are_refused_before_a_run_starts(desk, capsys, command):
    document = desk.document()
    document["evaluate"]["domain"]["metrics"] = {"multiple_choice": {}}
    assert desk.command(command, desk.write(document)) == 2
    assert "harness: evaluate.domain: " in capsys.readouterr().err
    assert not (desk.folder / f"out{desk.count}").exists()
