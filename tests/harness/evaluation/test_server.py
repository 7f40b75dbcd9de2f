"""Answers from a stub of a completions server on loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest
from support.stub_model_server import StubModelServer, serving

from harness.errors import HarnessError, RunError
from harness.evaluation import server
from harness.evaluation.predictions import load_predictions
from harness.spec.schema import fill_defaults
from harness.spec_keys import evaluation
from harness.utils import http_requests

SAID = ["yes", "a much longer answer", "", "no", "天气很好"]


class StubServer(StubModelServer):
    """Answers each prompt with the user's message; `plan` has the status codes of the first requests."""

    def __init__(self, tokenizer):
        super().__init__(StubHandler, tokenizer)
        self.plan: list[int] = []
        self.headers: list[dict] = []
        self.reply = {"finish_reason": "stop", "stop_reason": "<|im_end|>"}
        self.raw: bytes | None = None
        self.location = ""
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.delay = 0.0


class StubHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        stub = self.server
        with stub.lock:
            stub.under_way += 1
            stub.most = max(stub.most, stub.under_way)
            status = stub.plan.pop(0) if stub.plan else 200
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append({**request, "path": self.path})
            stub.headers.append(dict(self.headers))
        if stub.delay:
            threading.Event().wait(stub.delay)
        prompt = request["prompt"]
        text = prompt if isinstance(prompt, str) else stub.tokenizer.decode(prompt)
        said = text.rsplit("<|im_start|>user\n", 1)[-1].split("<|im_end|>")[0]
        usage = {"prompt_tokens": 1, "completion_tokens": len(said.encode()) + 1}
        body = json.dumps({"choices": [{"index": 0, "text": said, **stub.reply}], "usage": usage}).encode()
        if status != 200:
            body = b'{"error": {"message": "not now"}}'
        with stub.lock:
            stub.under_way -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(stub.raw or body)))
        if status == 429:
            self.send_header("Retry-After", "0")
        if stub.location:
            self.send_header("Location", stub.location)
        self.end_headers()
        self.wfile.write(stub.raw or body)

    def log_message(self, *_):
        pass


@pytest.fixture
def stub(tokenizer, monkeypatch):
    with serving(StubServer(tokenizer), monkeypatch) as stub_server:
        yield stub_server


@pytest.fixture
def pauses(monkeypatch):
    recorded_pauses = []
    monkeypatch.setattr(http_requests, "time", SimpleNamespace(sleep=recorded_pauses.append))
    return recorded_pauses


@pytest.fixture
def evaluate(kit, tokenizer, stub):
    rows = [kit.example(said, said or "?") for said in SAID]

    def run(stage=0, folder=None, metrics=None, model=None, limits=None, **settings):
        given = {"url": stub.url, "model": "desk", **settings}
        schema = {"type": "object", "properties": evaluation.SERVER_KEYS}
        suite = kit.suite(server=fill_defaults(given, schema, schema), **(limits or {}))
        return kit.evaluate(model, suite, rows, metrics or {"same": kit.same}, stage=stage, folder=folder)

    return run


def test_server_receives_prompt_tokens_and_needs_no_model(evaluate, stub, kit, tokenizer):
    result = evaluate()
    assert [item.answer for item in result.items] == SAID
    assert [item.finish for item in result.items] == ["stop", "stop", "empty", "stop", "stop"]
    assert [item.answer_tokens for item in result.items] == [len(said.encode()) + 1 for said in SAID]
    assert result.scores[0].value == 4 / 5
    request = next(one for one in stub.requests if "yes" in tokenizer.decode(one["prompt"]))
    assert tokenizer.decode(request["prompt"]) == "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n"
    assert request["path"] == "/v1/completions"
    wanted = {"model": "desk", "max_tokens": 24, "temperature": 0, "n": 1, "stop": ["<|im_end|>"]}
    assert {key: request[key] for key in wanted} == wanted
    assert "Authorization" not in stub.headers[0]


def test_prompts_can_be_sent_as_text(evaluate, stub):
    evaluate(prompts="text")
    assert "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n" in [one["prompt"] for one in stub.requests]


def test_body_fields_override_the_request(evaluate, stub):
    evaluate(stage=2, body={"stop_token_ids": [2], "seed": 5})
    assert stub.requests[0]["stop_token_ids"] == [2]
    assert stub.requests[0]["seed"] == 5


@pytest.mark.parametrize(
    ("reply", "finish"),
    [
        ({"finish_reason": "stop", "stop_reason": None}, "eos"),
        ({"finish_reason": "stop", "stop_reason": 4}, "stop"),
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "length", "text": "cut here<|im_end|>and on"}, "stop"),
        ({"finish_reason": "stop", "text": " \n"}, "empty"),
        ({"finish_reason": "length", "text": None}, "empty"),
    ],
)
def test_finish_reasons_are_mapped(evaluate, stub, reply, finish):
    stub.reply = reply
    assert evaluate().items[0].finish == finish


def test_temporary_errors_are_retried_with_growing_pauses(evaluate, stub, pauses):
    stub.plan = [503, 500, 429]
    assert [item.answer for item in evaluate(concurrency=1).items] == SAID
    assert len(stub.requests) == len(SAID) + 3
    assert 0.7 < pauses[0] < 1.3
    assert 1.4 < pauses[1] < 2.6
    assert pauses[2] == 0.0  # as long as the server asked for


def test_permanent_error_is_reported(evaluate, stub, pauses):
    stub.plan = [503] * 3
    with pytest.raises(RunError, match=r"evaluate\.desk\.server: .*status 503: .*not now.*after 3 attempts"):
        evaluate(retries=2, concurrency=1)
    assert len(pauses) == 2


@pytest.mark.parametrize(("status", "hint"), [(401, "key_env"), (404, "model's name"), (400, "length")])
def test_invalid_request_is_not_repeated(evaluate, stub, pauses, status, hint):
    stub.plan = [status]
    with pytest.raises(RunError, match=rf"status {status}.*{hint}"):
        evaluate(concurrency=1)
    assert (len(stub.requests), pauses) == (1, [])


def test_timeout_is_an_error(evaluate, stub, pauses):
    stub.delay = 1.0
    with pytest.raises(RunError, match=r"does not respond: .*timed out.*after 2 attempts"):
        evaluate(timeout=0.05, retries=1, concurrency=1)


def test_unreachable_server_is_named(evaluate, pauses):
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9/v1: the server does not respond: .*after 1 attempts"):
        evaluate(url="http://127.0.0.1:9/v1", retries=0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"<html>", "not valid JSON"),
        (b"\xff\xfe\xfd{}", "not text in UTF-8: invalid start byte at byte 0"),
        (b'{"a": "\xe9"}', "not text in UTF-8"),
        (b"[1]", "not a JSON object"),
        (b'{"choices": []}', "has no completion"),
    ],
)
def test_reply_of_another_structure_is_rejected(evaluate, stub, raw, message):
    stub.raw = raw
    with pytest.raises(RunError, match=message):
        evaluate(concurrency=1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_an_error_and_takes_no_secret_elsewhere(evaluate, stub, tokenizer, pauses, monkeypatch, status):
    monkeypatch.setenv("DESK_KEY", "sk-very-secret")
    with StubServer(tokenizer) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        stub.plan, stub.location = [status], elsewhere.url.replace("//", "//ann:pass@") + "?token=sk-other"
        with pytest.raises(RunError) as raised:
            evaluate(key_env="DESK_KEY", concurrency=1)
        elsewhere.shutdown()
    assert f"redirects (status {status}) to {elsewhere.url}, which is not followed; check server.url" in str(
        raised.value
    )
    assert "sk-" not in str(raised.value) + "".join(map(str, pauses))
    assert (len(stub.requests), elsewhere.requests) == (1, [])


def test_filtered_answer_is_rejected(evaluate, stub):
    stub.reply = {"finish_reason": "content_filter"}
    with pytest.raises(RunError, match="'content_filter'"):
        evaluate(concurrency=1)


def test_requests_run_concurrently_up_to_the_limit(evaluate, stub):
    stub.delay = 0.1
    evaluate(concurrency=2)
    assert stub.most == 2


def test_key_comes_from_the_environment_and_is_stored_nowhere(evaluate, stub, monkeypatch, tmp_path):
    monkeypatch.setenv("DESK_KEY", "sk-very-secret")
    result = evaluate(key_env="DESK_KEY", folder=tmp_path)
    assert stub.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "sk-very-secret" not in (tmp_path / "desk-stage0.jsonl").read_text() + repr(result)
    stub.plan = [401]
    with pytest.raises(RunError) as raised:
        evaluate(key_env="DESK_KEY", concurrency=1)
    assert "sk-very-secret" not in str(raised.value)
    monkeypatch.delenv("DESK_KEY")
    with pytest.raises(HarnessError, match=r"server\.key_env: .*DESK_KEY.*is not set"):
        evaluate(key_env="DESK_KEY")


def test_answers_before_a_failure_are_stored_and_reused(evaluate, stub, pauses, tmp_path):
    stub.plan = [200, 200, 400]
    with pytest.raises(RunError):
        evaluate(concurrency=1, folder=tmp_path)
    assert [item.answer is not None for item in load_predictions(tmp_path / "desk-stage0.jsonl").items].count(True) == 2
    stub.requests.clear()
    assert [item.answer for item in evaluate(folder=tmp_path).items] == SAID
    assert len(stub.requests) == len(SAID) - 2
    stub.requests.clear()
    evaluate(folder=tmp_path)
    assert stub.requests == []
    (again,) = (evaluate(folder=tmp_path, body={"top_k": 1}),)
    assert len(stub.requests) == len(SAID), "other fields are another question"
    assert again.scores[0].n == len(SAID)


def test_model_name_contains_the_stage(kit, tokenizer, stub):
    schema = {"type": "object", "properties": evaluation.SERVER_KEYS}
    settings = fill_defaults({"url": stub.url + "/", "model": "desk-{stage}"}, schema, schema)
    assert server.AnswerServer.from_settings(settings, 3).model == "desk-3"
    assert server.AnswerServer.from_settings(settings, 3).url == stub.url


def test_likelihoods_need_a_local_model(evaluate, kit):
    with pytest.raises(HarnessError, match=r"evaluate\.desk: a metric needs a model, but only a server is available"):
        evaluate(metrics={"nll": kit.likelihood})


def test_local_model_and_server_share_an_evaluation(evaluate, kit, tiny_model, stub):
    result = evaluate(model=tiny_model, metrics={"nll": kit.likelihood, "same": kit.same})
    assert [item.answer for item in result.items] == SAID
    assert all(item.nll > 0 for item in result.items)
