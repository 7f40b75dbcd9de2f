"""A chat template that does not end, nests without end or needs all memory is an error of the template."""

from __future__ import annotations

import time

import pytest
from harness_templates.jinja import JinjaTemplate

from harness import HarnessError, Message, Template
from harness.data.tokenization import rendering
from harness.data.tokenization.rendering import render_messages

MESSAGES = (Message("user", "Hi"), Message("assistant", "Hello"))
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
NESTED = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"


def render(template, tokenizer):
    return render_messages(template, MESSAGES, tokenizer, add_generation_prompt=False, tools=())


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no CPU time of single threads")
def test_a_template_that_does_not_end_is_stopped(tokenizer, monkeypatch):
    monkeypatch.setattr(rendering, "MAX_RENDER_SECONDS", 0.1)
    template = JinjaTemplate(LOOP, None, {}, "2026-01-01")
    with pytest.raises(HarnessError, match=r"template jinja: it renders one conversation for more than 0\.1 s"):
        render(template, tokenizer)


def test_a_template_that_nests_without_end_is_named(tokenizer):
    template = JinjaTemplate(NESTED, None, {}, "2026-01-01")
    with pytest.raises(HarnessError, match=r"template jinja: .*RecursionError"):
        render(template, tokenizer)


def test_a_template_without_enough_memory_is_named(tokenizer):
    class Hungry(Template):
        name = "hungry"

        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            raise MemoryError

        def stop_strings(self, tokenizer):
            return ()

    with pytest.raises(HarnessError, match="template hungry: it needs more memory"):
        render(Hungry(), tokenizer)
