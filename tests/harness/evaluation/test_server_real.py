"""Answers from a real server: `transformers serve`, in its own process, on loopback.

Needs the packages that `transformers serve` requires; the extra `dev` installs them.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch

from harness.errors import RunError
from harness.spec.schema import fill_defaults
from harness.spec_keys import evaluation

pytestmark = pytest.mark.slow

PROMPTS = ["Name a river.", "天气怎么样？", "Say\nnothing", "q" * 60, "x"]
STARTS_WITHIN = 120  # seconds
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def sharp_model(tokenizer):
    """Return a random model with large weights: its answers depend on the prompt."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


@pytest.fixture(scope="module")
def served(sharp_model, tokenizer, tmp_path_factory):
    """Return the URL of the API and the model's name."""
    folder = tmp_path_factory.mktemp("served") / "model"
    sharp_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    with serve(folder) as address:
        yield address, str(folder)


@contextlib.contextmanager
def serve(folder):
    """Start a server of a folder with a model and yield the URL of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    log = folder.parent / "log.txt"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, *command, "--device", "cpu", "--dtype", "float32"], stdout=stream, stderr=stream
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server, url, log):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end:
        assert server.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError), opener.open(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def answered(kit, tokenizer, sharp_model, served, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    rows = [kit.example(prompt, "an answer") for prompt in PROMPTS]

    def run(by_server, max_new_tokens=24, **settings):
        server = None
        if by_server:
            schema = {"type": "object", "properties": evaluation.SERVER_KEYS}
            given = {"url": served[0], "model": served[1], "prompts": "text", "retries": 0, "concurrency": 2}
            model = sharp_model if settings.get("server", {}).get("chat") else None
            server = fill_defaults({**given, **settings.pop("server", {})}, schema, schema)
        suite = kit.suite(max_new_tokens=max_new_tokens, server=server, **settings)
        return kit.evaluate(model if by_server else sharp_model, suite, rows, {"same": kit.same}, max_length=300).items

    return run


def finish_reasons(items):
    """Return why answers ended; the server does not distinguish the end of sequence from other stops."""
    return ["stop" if item.finish == "eos" else item.finish for item in items]


def test_server_answers_equal_local_greedy_answers(answered):
    here, there = answered(False), answered(True)
    assert [item.answer for item in there] == [item.answer for item in here]
    assert [item.answer_tokens for item in there] == [item.answer_tokens for item in here]
    assert [item.prompt_tokens for item in there] == [item.prompt_tokens for item in here]
    assert len({item.answer for item in here}) == len(PROMPTS), "answers that are all alike would prove little"
    assert [item.finish for item in there] == finish_reasons(here)
    assert set(finish_reasons(here)) == {"length", "stop"}


def test_server_answers_end_at_the_same_stop(answered):
    free = answered(False)
    stop = free[0].answer[5:7]
    here, there = (answered(by_server, stop=[stop]) for by_server in (False, True))
    assert here[0].finish == "stop"
    assert len(here[0].answer) < len(free[0].answer)
    assert [item.answer for item in there] == [item.answer for item in here]
    assert [item.finish for item in there] == finish_reasons(here)


def test_error_message_of_the_server_is_reported(answered):
    with pytest.raises(RunError, match=r"evaluate\.desk\.server: .*status 400: .*prompt must be a string"):
        answered(True, server={"prompts": "tokens"})
    with pytest.raises(RunError, match=r"status 400: .*pinned to .*requested 'nobody'"):
        answered(True, server={"model": "nobody"})


def test_answers_to_messages_equal_local_greedy_answers(answered):
    here, there = answered(False), answered(True, server={"chat": True})
    assert [item.answer for item in there] == [item.answer for item in here]
    assert [item.prompt_tokens for item in there] == [item.prompt_tokens for item in here]
    assert [item.finish for item in there] == finish_reasons(here)


def test_missing_chat_template_of_the_server_is_found(answered, sharp_model, tokenizer, tmp_path):
    sharp_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    message = (
        r"evaluate\.desk\.server: .*test:1: the server's prompt has \d+ tokens, the run's \d+; .*harness export RUN"
    )
    with serve(tmp_path / "model") as address, pytest.raises(RunError, match=message):
        answered(True, server={"chat": True, "url": address, "model": str(tmp_path / "model")})


def test_other_weights_of_the_server_are_found(answered, sharp_model, tokenizer, tmp_path):
    other = copy.deepcopy(sharp_model)
    with torch.no_grad():
        other.lm_head.weight.copy_(other.lm_head.weight.roll(1, 0))
    other.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(CHATML)
    message = r"test:1: \d of 5 sampled answers are not the run's: .* instead of .*harness export RUN"
    with serve(tmp_path / "model") as address:
        settings = {"chat": True, "url": address, "model": str(tmp_path / "model")}
        with pytest.raises(RunError, match=message):
            answered(True, server=settings)
        answered(True, server={**settings, "tolerance": None})
