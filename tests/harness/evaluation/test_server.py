"""Answers from a server: a stub of the completions protocol on loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.errors import HarnessError, RunError
from harness.evaluation import server
from harness.evaluation.predictions import load_predictions
from harness.spec.schema import fill_defaults
from harness.spec_keys import evaluation

SAID = ["yes", "a much longer answer", "", "no", "天气很好"]


class Stub(ThreadingHTTPServer):
    """Answers each prompt with its user's message. plan: status codes to answer with first, one a request."""

    daemon_threads = True

    def __init__(self, tokenizer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer = tokenizer
        self.plan: list[int] = []
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.reply = {"finish_reason": "stop", "stop_reason": "<|im_end|>"}
        self.raw: bytes | None = None
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.delay = 0.0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
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
        self.end_headers()
        self.wfile.write(stub.raw or body)

    def log_message(self, *_):
        pass


@pytest.fixture
def stub(tokenizer, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Stub(tokenizer)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(server.time, "sleep", found.append)
    return found


@pytest.fixture
def go(kit, tokenizer, stub):
    rows = [kit.example(said, said or "?") for said in SAID]

    def run(stage=0, folder=None, metrics=None, model=None, limits=None, **settings):
        given = {"url": stub.url, "model": "desk", **settings}
        schema = {"type": "object", "properties": evaluation.SERVER_KEYS}
        suite = kit.suite(server=fill_defaults(given, schema, schema), **(limits or {}))
        return kit.evaluate(model, suite, rows, metrics or {"same": kit.same}, stage=stage, folder=folder)

    return run


def test_a_server_is_asked_with_our_own_prompt_tokens_and_needs_no_model_here(go, stub, kit, tokenizer):
    result = go()
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


def test_prompts_can_be_sent_as_text(go, stub):
    go(prompts="text")
    assert "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n" in [one["prompt"] for one in stub.requests]


def test_further_fields_are_sent_and_have_the_last_word(go, stub):
    go(stage=2, body={"stop_token_ids": [2], "seed": 5})
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
def test_finish_reasons_are_mapped(go, stub, reply, finish):
    stub.reply = reply
    assert go().items[0].finish == finish


def test_what_may_pass_is_asked_again_after_growing_pauses(go, stub, pauses):
    stub.plan = [503, 500, 429]
    assert [item.answer for item in go(concurrency=1).items] == SAID
    assert len(stub.requests) == len(SAID) + 3
    assert 0.7 < pauses[0] < 1.3
    assert 1.4 < pauses[1] < 2.6
    assert pauses[2] == 0.0  # as long as the server asked for


def test_what_does_not_pass_ends_with_its_reason(go, stub, pauses):
    stub.plan = [503] * 3
    with pytest.raises(RunError, match=r"evaluate\.desk\.server: .*status 503: .*not now.*after 3 tries"):
        go(retries=2, concurrency=1)
    assert len(pauses) == 2


@pytest.mark.parametrize(("status", "text"), [(401, "key_env"), (404, "is the model's name right"), (400, "context")])
def test_a_request_that_is_wrong_is_not_repeated(go, stub, pauses, status, text):
    stub.plan = [status]
    with pytest.raises(RunError, match=rf"status {status}.*{text}"):
        go(concurrency=1)
    assert (len(stub.requests), pauses) == (1, [])


def test_a_server_that_does_not_answer_in_time_is_given_up(go, stub, pauses):
    stub.delay = 1.0
    with pytest.raises(RunError, match=r"does not answer: .*timed out.*after 2 tries"):
        go(timeout=0.05, retries=1, concurrency=1)


def test_a_server_that_is_not_there_is_named(go, pauses):
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9/v1: the server does not answer: .*after 1 tries"):
        go(url="http://127.0.0.1:9/v1", retries=0)


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"<html>", "no JSON"), (b"[1]", "no JSON object"), (b'{"choices": []}', "has no completion")],
)
def test_a_reply_of_another_kind_is_named(go, stub, raw, text):
    stub.raw = raw
    with pytest.raises(RunError, match=text):
        go(concurrency=1)


def test_an_answer_that_a_filter_cut_off_is_none(go, stub):
    stub.reply = {"finish_reason": "content_filter"}
    with pytest.raises(RunError, match="'content_filter'"):
        go(concurrency=1)


def test_requests_are_under_way_together_and_never_more_than_allowed(go, stub):
    stub.delay = 0.1
    go(concurrency=2)
    assert stub.most == 2


def test_the_key_comes_from_the_environment_and_stands_nowhere_else(go, stub, monkeypatch, tmp_path):
    monkeypatch.setenv("DESK_KEY", "sk-very-secret")
    result = go(key_env="DESK_KEY", folder=tmp_path)
    assert stub.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "sk-very-secret" not in (tmp_path / "desk-stage0.jsonl").read_text() + repr(result)
    stub.plan = [401]
    with pytest.raises(RunError) as raised:
        go(key_env="DESK_KEY", concurrency=1)
    assert "sk-very-secret" not in str(raised.value)
    monkeypatch.delenv("DESK_KEY")
    with pytest.raises(HarnessError, match=r"server\.key_env: .*DESK_KEY.*is not set"):
        go(key_env="DESK_KEY")


def test_what_was_answered_before_a_failure_is_kept_and_not_asked_again(go, stub, pauses, tmp_path):
    stub.plan = [200, 200, 400]
    with pytest.raises(RunError):
        go(concurrency=1, folder=tmp_path)
    assert [item.answer is not None for item in load_predictions(tmp_path / "desk-stage0.jsonl").items].count(True) == 2
    stub.requests.clear()
    assert [item.answer for item in go(folder=tmp_path).items] == SAID
    assert len(stub.requests) == len(SAID) - 2
    stub.requests.clear()
    go(folder=tmp_path)
    assert stub.requests == []
    (again,) = (go(folder=tmp_path, body={"top_k": 1}),)
    assert len(stub.requests) == len(SAID), "other fields are another question"
    assert again.scores[0].n == len(SAID)


def test_the_stage_stands_in_the_models_name_there(kit, tokenizer, stub):
    schema = {"type": "object", "properties": evaluation.SERVER_KEYS}
    settings = fill_defaults({"url": stub.url + "/", "model": "desk-{stage}"}, schema, schema)
    assert server.CompletionServer.from_settings(settings, 3).model == "desk-3"
    assert server.CompletionServer.from_settings(settings, 3).url == stub.url


def test_likelihoods_need_the_model_itself(go, kit):
    with pytest.raises(HarnessError, match=r"evaluate\.desk: needs a model, and only a server is at hand"):
        go(metrics={"nll": kit.likelihood})


def test_a_model_here_gives_the_likelihoods_while_the_server_answers(go, kit, tiny_model, stub):
    result = go(model=tiny_model, metrics={"nll": kit.likelihood, "same": kit.same})
    assert [item.answer for item in result.items] == SAID
    assert all(item.nll > 0 for item in result.items)
