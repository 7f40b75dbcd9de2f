"""`harness chat` and `harness generate`: answers equal those of the evaluation, and a file of answers is resumable."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from harness.evaluation.generation import Answer
from harness.model import device
from harness.registry import discover_plugins
from harness.runner import answer_file as answer_file_module
from harness.runner import trained_model
from harness.runner.respond import AnswerSettings, stream_answer
from harness.runner.trained_model import load_trained_model
from harness.terminal.chat import Chat, Speaker
from harness.types import Message


@pytest.fixture(scope="module")
def run(desk):
    """A finished run with a LoRA adapter."""
    return desk.start(desk.document(mitigations={"lora": {"rank": 2}}))


def stored_items(run, stage):
    lines = (run / "predictions" / f"domain-stage{stage}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("options", "stage"), [([], 1), (["--base"], 0)])
def test_generated_answers_equal_those_of_the_evaluation(desk, run, capsys, tmp_path, options, stage):
    items = stored_items(run, stage)
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": item["prompt"], "id": item["id"]}) + "\n" for item in items))
    command = ["generate", run, prompts, "--output", output, "--max-new-tokens", 3, *options]
    assert desk.command(*command) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [item["id"] for item in items]
    assert [answer["answer"] for answer in answers] == [item["answer"] for item in items]
    assert f"{output}: {len(items)} answers" in capsys.readouterr().out


def test_an_interrupted_file_is_completed(desk, run, capsys, monkeypatch, tmp_path):
    prompts, output = tmp_path / "prompts.csv", tmp_path / "answers.jsonl"
    prompts.write_text("question,answer\n" + "".join(f"Where is word {number}?,there\n" for number in range(7)))
    command = ["generate", run, prompts, "--output", output, "--max-new-tokens", 3, "--batch-size", 1]
    assert desk.command(*command) == 0
    complete = output.read_bytes()
    assert json.loads(complete.splitlines()[0])["reference"] == "there"
    lines = complete.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:3]) + lines[3][:10])
    capsys.readouterr()
    assert desk.command(*command) == 0
    assert output.read_bytes() == complete
    assert "7 answers, 3 of them were there already" in capsys.readouterr().out
    monkeypatch.setattr(answer_file_module, "load_trained_model", None)  # a complete file needs no model
    assert desk.command(*command) == 0
    assert desk.command(*command[:-2], "--temperature", 0.5) == 2
    assert "the file has answers with other settings (temperature)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"title": "x"}\n', "p.jsonl:1: has no prompt; name its column: --column NAME; the row has title"),
        ("p.jsonl", '{"messages": [{"role": "robot"}]}\n', "has the unknown role 'robot'"),
        ("p.jsonl", "{\n", "is not JSON"),
        ("p.txt", "hello", "is neither JSON Lines nor CSV"),
        ("p.jsonl", None, "p.jsonl"),
    ],
)
def test_a_file_without_prompts_is_one_line(desk, run, capsys, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert desk.command("generate", run, tmp_path / name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (run / "generated").exists()


def test_a_reference_at_the_end_of_a_conversation_is_not_part_of_the_prompt():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record = answer_file_module.Record("f:1", {"messages": turns})
    assert answer_file_module._parse_prompt(record, None)[1] == [Message("user", "a")]
    instruction = answer_file_module.Record("f:1", {"instruction": "a", "input": "c", "system": "s"})
    assert answer_file_module._parse_prompt(instruction, None)[1] == [Message("system", "s"), Message("user", "a", "c")]


def test_the_lines_of_the_input_are_one_conversation(desk, run, capsys, monkeypatch):
    item = stored_items(run, 1)[0]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{item['prompt']}\n/reset\n\n{item['prompt']}\n/quit\nnot read\n"))
    assert desk.command("chat", run, "--max-new-tokens", 3) == 0
    assert capsys.readouterr().out == f"{item['answer']}\n" * 2


def test_both_models_answer_side_by_side(desk, run, capsys, monkeypatch):
    before, after = stored_items(run, 0)[0], stored_items(run, 1)[0]
    monkeypatch.setattr("sys.stdin", io.StringIO(before["prompt"]))
    assert desk.command("chat", run, "--compare", "--max-new-tokens", 3) == 0
    assert capsys.readouterr().out == f"base: {before['answer']}\ntuned: {after['answer']}\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_chat(monkeypatch):
    """A function that runs a chat on a terminal and returns the conversations that were answered and the output."""

    def open_chat(*lines, fail=None, finish="eos"):
        seen, typed, output = [], iter(lines), Terminal()

        def answer(trained, model, messages, settings, on_text, *, turn=0):
            seen.append((model, [(message.role, message.content) for message in messages]))
            on_text("hal")
            if fail is not None:
                raise fail
            on_text("hallo")
            return Answer("hallo", finish, 2)

        def read(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("harness.terminal.chat.stream_answer", answer)
        monkeypatch.setattr("builtins.input", read)

        class Run:
            class run:  # noqa: N801
                name = "tiny"

        from contextlib import nullcontext

        speakers = [Speaker("base", lambda: nullcontext("b")), Speaker("tuned", lambda: nullcontext("t"))]
        console = Console(file=output, force_terminal=True, width=80)
        Chat(Run(), speakers, AnswerSettings(), stdin=Terminal(), console=console).run()
        return seen, output.getvalue()

    return open_chat


def test_commands_of_the_chat(open_chat):
    seen, output = open_chat(
        "hi", "again", "/system Be brief.", "hi", "/reset", "hi", "/system", "hi", "/what", "/quit"
    )
    of_tuned = [messages for model, messages in seen if model == "t"]
    assert of_tuned == [
        [("user", "hi")],
        [("user", "hi"), ("assistant", "hallo"), ("user", "again")],
        [("system", "Be brief."), ("user", "hi")],
        [("system", "Be brief."), ("user", "hi")],
        [("user", "hi")],
    ]
    assert "there is no command /what" in output
    assert "hallo" in output


def test_an_answer_that_was_cut_is_marked(open_chat):
    _, output = open_chat("hi", finish="length")
    assert "cut after 256 tokens (base, tuned); --max-new-tokens N allows more" in " ".join(output.split())
    assert "cut after" not in open_chat("hi")[1]


def test_ctrl_c_keeps_the_answer_so_far(open_chat):
    seen, _ = open_chat("hi", "more", fail=KeyboardInterrupt())
    assert [model for model, _ in seen] == ["b", "b"]
    assert seen[1][1] == [("user", "hi"), ("assistant", "hal"), ("user", "more")]


def test_a_refused_message_is_not_part_of_the_conversation(open_chat):
    error = answer_file_module.HarnessError("template", "refuses it", "shorten it")
    seen, output = open_chat("hi", "more", fail=error)
    assert seen[1][1] == [("user", "more")]
    assert "template: refuses it" in " ".join(output.split())


def test_a_trained_model_computes_as_the_run_did(run, monkeypatch):
    switched = []
    monkeypatch.setattr(device, "set_tf32", switched.append)
    spec = trained_model.load_run_json(run, "spec.json")
    spec["train"]["tf32"] = True
    monkeypatch.setattr(trained_model, "load_run_json", lambda *_: spec)
    load_trained_model(discover_plugins(), run)
    load_trained_model(discover_plugins(), run, precision="float32")
    assert switched == [True, False]


def test_a_run_without_a_model_names_a_command_that_can_be_pasted(tmp_path):
    with pytest.raises(answer_file_module.HarnessError, match=r"harness run --resume '.*my run'"):
        load_trained_model(discover_plugins(), tmp_path / "my run")


def test_sampling_depends_on_the_seed_alone(run):
    trained = load_trained_model(discover_plugins(), run)

    def answer(seed):
        settings = AnswerSettings(max_new_tokens=8, temperature=5.0, seed=seed)
        return stream_answer(trained, trained.model, [Message("user", "Where?")], settings, texts.append).text

    texts: list[str] = []
    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1
    assert all(not text.endswith("\ufffd") for text in texts)
