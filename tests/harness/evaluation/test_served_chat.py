"""Answers to messages from a stub of a chat server on loopback, compared with those of the run's model."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler

import pytest
from support.stub_model_server import StubModelServer, serving

from harness.errors import RunError
from harness.evaluation.generation import Answer, StopConditions
from harness.evaluation.predictions import load_predictions
from harness.evaluation.served_chat import build_chat_prompt, largest_gap
from harness.spec.schema import fill_defaults
from harness.spec_keys import evaluation
from harness.types import Example, Message, ToolCall

SAID = ["yes", "a much longer answer", "so", "no", "天气很好", "one", "two", "three", "four", "five"]


class ChatStub(StubModelServer):
    """Renders ChatML and answers each message with its text; `edit` changes a reply before it is sent."""

    def __init__(self, tokenizer):
        super().__init__(Handler, tokenizer)
        self.template = "".join
        self.edit = lambda request, reply: reply
        self.status = lambda request: 200
        self.tokenizes = False

    def encode(self, messages) -> list[int]:
        turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
        return self.tokenizer(self.template([*turns, "<|im_start|>assistant\n"]), add_special_tokens=False)["input_ids"]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        stub, request = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            ids = stub.encode(request["messages"])
            self.send(*((200, {"tokens": ids, "count": len(ids)}) if stub.tokenizes else (404, {})))
        else:
            stub.requests.append({**request, "path": self.path})
            said, prompt = request["messages"][-1]["content"], stub.encode(request["messages"])
            usage = {"prompt_tokens": len(prompt), "completion_tokens": len(said.encode()) + 1}
            choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            reply = stub.edit(request, {"choices": [choice], "usage": usage})
            self.send(stub.status(request), reply)

    def send(self, status, reply):
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def stub(tokenizer, monkeypatch):
    with serving(ChatStub(tokenizer), monkeypatch) as server:
        yield server


@pytest.fixture
def evaluate(kit, stub):
    def run(folder=None, model=None, said=SAID, rows=None, limits=None, **settings):
        schema = {"type": "object", "properties": evaluation.SERVER_KEYS}
        given = {"url": stub.url, "model": "desk", "chat": True, "retries": 0, **settings}
        suite = kit.suite(server=fill_defaults(given, schema, schema), **(limits or {}))
        rows = rows or [kit.example(text, text) for text in said]
        return kit.evaluate(model or kit.echo(), suite, rows, {"same": kit.same}, folder=folder)

    return run


def answer_with(text, finish="stop", tokens=3, only=None):
    """Return a function that gives another answer, to one message or to all."""

    def edit(request, reply):
        if only in (None, request["messages"][-1]["content"]):
            reply["choices"][0] |= {"message": {"content": text}, "finish_reason": finish}
            reply["usage"]["completion_tokens"] = tokens
        return reply

    return edit


def test_server_receives_messages_and_its_answers_are_scored(evaluate, stub):
    result = evaluate()
    assert [item.answer for item in result.items] == SAID
    assert result.scores[0].value == 1.0
    request = next(each for each in stub.requests if each["messages"][0]["content"] == "yes")
    assert request == {
        "path": "/v1/chat/completions",
        "model": "desk",
        "messages": [{"role": "user", "content": "yes"}],
        "max_tokens": 24,
        "temperature": 0,
        "stream": False,
    }
    assert len(stub.requests) == len(SAID), "the sample of compared answers costs no further request"


def test_another_chat_template_of_the_server_is_named_with_item_and_counts(evaluate, stub):
    stub.template = lambda turns: "<|im_start|>system\nBe kind.<|im_end|>\n" + "".join(turns)
    with pytest.raises(RunError) as raised:
        evaluate(said=["yes"])
    text = str(raised.value)
    assert text.startswith("evaluate.desk.server: test:1: the server's prompt has 40 tokens, the run's 22; ")
    assert "chat template was not saved" in text
    assert "harness export RUN --to merged FOLDER" in text
    assert "\n" not in text


def test_other_tokens_of_equal_number_are_found_where_the_server_tokenizes(evaluate, stub):
    stub.template = lambda turns: "".join(turns).replace("user", "USER")
    evaluate(said=["yes"])  # the number is equal, and this server has no endpoint for tokens
    stub.tokenizes = True
    with pytest.raises(
        RunError, match=r"test:1: token 2 of the server's prompt is 'U', of the run's 'u'; both have 22 "
    ):
        evaluate(said=["yes"])


def test_other_answers_are_named_with_item_and_counts(evaluate, stub):
    stub.edit = answer_with("perhaps", only="no")
    with pytest.raises(
        RunError, match=r"test:1: 1 of 8 sampled answers are not the run's: 'perhaps' \(3 tokens\) instead "
    ):
        evaluate(said=[*SAID[:5], *SAID[7:]])


def test_an_answer_that_does_not_end_is_found(evaluate, stub):
    stub.edit = answer_with("yes", finish="length", tokens=24)
    with pytest.raises(RunError, match=r"'yes' does not end after 4 tokens as in the run, and is cut after 24"):
        evaluate(said=["yes"])


def test_answers_are_not_compared_without_a_tolerance(evaluate, stub):
    stub.edit = answer_with("perhaps")
    assert {item.answer for item in evaluate(tolerance=None).items} == {"perhaps"}


def test_nothing_is_paid_twice_after_a_failure(evaluate, stub, tmp_path):
    stub.status = lambda request: 500 if len(stub.requests) == 6 else 200
    with pytest.raises(RunError, match="status 500"):
        evaluate(folder=tmp_path, concurrency=1)
    stored = [item for item in load_predictions(tmp_path / "desk-stage0.jsonl").items if item.answer is not None]
    assert len(stored) == 5
    stub.requests.clear()
    stub.status = lambda request: 200
    assert [item.answer for item in evaluate(folder=tmp_path).items] == SAID
    assert len(stub.requests) == len(SAID) - 5


def test_a_different_answer_is_not_stored(evaluate, stub, tmp_path):
    stub.edit = answer_with("perhaps", only="no")
    said = SAID[:6]
    with pytest.raises(RunError, match="1 of 6 sampled answers"):
        evaluate(folder=tmp_path, said=said)
    items = load_predictions(tmp_path / "desk-stage0.jsonl").items
    assert {item.answer for item in items} == {text for text in said if text != "no"}


def test_a_message_with_a_control_token_is_answered_but_not_compared(evaluate, stub, kit):
    rows = [kit.example("say <|im_end|> now", "x")]
    stub.edit = answer_with("fine")
    assert evaluate(rows=rows).items[0].answer == "fine"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": None, "tool_calls": [{"id": "1"}]}, "has tool_calls, which the server has cut out"),
        ({"content": "x", "reasoning_content": "hm"}, "has reasoning_content, which the server has cut out"),
        (None, "has no message"),
    ],
)
def test_a_reply_that_is_not_the_answer_is_rejected(evaluate, stub, message, expected):
    stub.edit = lambda request, reply: {**reply, "choices": [{"message": message, "finish_reason": "stop"}]}
    with pytest.raises(RunError, match=expected):
        evaluate(said=["yes"])


def test_a_reply_without_a_number_of_tokens_is_rejected(evaluate, stub):
    stub.edit = lambda request, reply: {"choices": reply["choices"]}
    with pytest.raises(RunError, match=r"test:1: the reply has no usage\.prompt_tokens"):
        evaluate(said=["yes"])


def test_tools_are_sent_in_the_format_of_openai():
    messages = (
        Message("user", "Weather?"),
        Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Bern"}), ToolCall("time", {}))),
        Message("tool", "12:00", name="time"),
        Message("tool", "rain", name="weather"),
        Message("assistant", "Rain."),
    )
    request = build_chat_prompt(Example("id", messages, "test:1", tools=({"name": "weather"},)))
    _, calls, first, second = request["messages"]
    assert [call["id"] for call in calls["tool_calls"]] == ["call00001", "call00002"]
    assert calls["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Bern"}'}
    assert (first["tool_call_id"], second["tool_call_id"]) == ("call00002", "call00001")
    assert request["tools"] == [{"type": "function", "function": {"name": "weather"}}]


def test_gap_of_a_greedy_answer_is_zero_and_of_another_one_is_not(tiny_model, tokenizer):
    import torch

    prompt = tokenizer("What is tea?", add_special_tokens=False)["input_ids"]
    stops = StopConditions(tokenizer.eos_token_id, frozenset(), ())
    with torch.no_grad():
        logits = tiny_model(input_ids=torch.tensor([prompt])).logits[0, -1]
    printable = [
        token for token in logits.argsort(descending=True).tolist() if tokenizer.decode([token]).strip().isalnum()
    ]
    for token in (printable[0], printable[3]):
        answer = Answer(tokenizer.decode([token]), "length", 1)
        expected = float(logits.max() - logits[token])
        assert largest_gap(tiny_model, tokenizer, prompt, answer, stops) == pytest.approx(expected, abs=1e-4)
    assert largest_gap(tiny_model, tokenizer, prompt, Answer("天", "stop", 3), stops) > 0
