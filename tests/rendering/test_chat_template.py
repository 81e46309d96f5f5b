"""A record has the same tokens on every day, also in a template that writes the date."""

from __future__ import annotations

import copy
import resource
import signal
import time
from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from kd.evaluation.cases import build_cases
from kd.limits import LimitPassed
from kd.rendering import chat_template
from kd.rendering.chat_template import apply_template
from kd.rendering.encode import encode
from kd.rendering.turns import render
from kd.sources.demo import corpus as demo

AS_LLAMA_3 = """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today Date: " + date_string }}
"""
AS_GPT_OSS = """{%- macro opening() -%}Current date: {{ strftime_now(format="%Y-%m-%d") }}{%- endmacro -%}
{{ opening() }}
"""
DAYS = [datetime(2026, 11, 25, 23, 59), datetime(2027, 1, 3, 0, 1)]
CHAT = [{"role": "user", "content": "Hi."}]


@pytest.fixture
def on(monkeypatch):
    def set_clock(day: datetime) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return day

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_clock


@pytest.mark.parametrize(
    ("opening", "written"), [(AS_LLAMA_3, "Today Date: 26 Jul 2024"), (AS_GPT_OSS, "Current date: 2024-07-26")]
)
def test_two_days_one_text(opening, written, tokenizer, on):
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = opening + demo.CHAT_TEMPLATE
    record = demo.record("single", 1, seed=4)
    found, clocks = [], []
    for day in DAYS:
        on(day)
        clocks.append(dated.apply_chat_template(CHAT, tokenize=False))
        found.append((encode(record, dated), [case.prompt for case in build_cases([record], dated)]))
    assert clocks[0] != clocks[1]  # the template does read the clock
    assert found[0] == found[1]
    text, _ = render(record, dated)
    assert text.startswith(written) and found[0][1] and all(text.startswith(prompt) for prompt in found[0][1])


@pytest.mark.parametrize(
    "opening", ["", "\n", "\n\n  ", "  {% if true %}x{% endif %}\n", "{{- 'x' }}\n", "{# strftime_now #}\n"]
)
def test_only_the_date_is_another(opening, tokenizer, on):
    """White space before the template's own beginning is as transformers renders it."""
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = (
        opening + "{% for m in messages %}{{ m.content }} {{ strftime_now('%A %-d. %B %y, %H:%M, %j %%') }}{% endfor %}"
    )
    on(datetime(2024, 7, 26))
    wanted = dated.apply_chat_template(CHAT, tokenize=False)
    assert "Friday 26. July 24, 00:00, 208 %" in wanted
    on(DAYS[0])
    assert apply_template(dated, CHAT, None) == wanted and apply_template(dated, [CHAT, CHAT], None) == [wanted, wanted]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'x' * 10**10 }}", "more than 4 GiB of memory"),
        ("{{ messages[0].content * 10**10 }}", "more than 4 GiB of memory"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "s of processor time"),
        ("{{ messages[0].content * 20_000_000 }}", "it writes 80,000,000 characters, more than 67,108,864"),
    ],
)
def test_a_template_without_bounds_is_refused_and_soon_not_tried_again(template, said, tokenizer, monkeypatch):
    endless = copy.deepcopy(tokenizer)
    endless.chat_template = template
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.2)
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    for _ in range(chat_template.MOST_PASSED):
        with pytest.raises(LimitPassed, match=said):
            apply_template(endless, [{"role": "user", "content": "word"}], None)
    started = time.process_time()
    with pytest.raises(chat_template.REFUSALS, match="not tried again"):
        apply_template(endless, CHAT, None)
    assert time.process_time() - started < 0.1  # at once
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert apply_template(tokenizer, CHAT, None)
