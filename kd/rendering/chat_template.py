"""Chat template of the tokenizer, applied here alone, so that a record has one text everywhere.

Some templates write today's date (`strftime_now`, as those of Llama 3 and gpt-oss do). A record would then have other
tokens on another day, and a cache captured before midnight none of the records trained after it: here every day is
DATE.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import date
from typing import Any, overload

from jinja2 import TemplateError

from kd.limits import LimitPassed, limit_memory, limit_processor_time

MOST_SECONDS = 10.0  # of the processor for a rendering; a record of 3,000 turns takes less than one
MOST_MEMORY = 4 * 2**30  # bytes for a template's first rendering in this process
MOST_CHARACTERS = 2**26
MOST_PASSED = 3  # times that a template may pass a limit in this process, and be tried again
_tried: set[str] = set()  # templates rendered under the limit of memory
_passed: defaultdict[str, list[LimitPassed]] = defaultdict(list)

DATE = date(2024, 7, 26)  # the one that Llama 3's templates name where they are given none
_CODES = [code for letter in "YymdBbAaeHIMSpjUWwxXF" for code in (f"%{letter}", f"%-{letter}")] + ["%%"]
# transformers gives a template its own strftime_now and takes no other as an argument (it turns functions into text),
# but a macro of that name goes before it. The line's end after a block is dropped, so the template behind it begins as
# it did.
_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set day = namespace(said=format) -%}"
    f"{{%- for code, value in {[(code, DATE.strftime(code)) for code in _CODES]!r} -%}}"
    "{%- set day.said = day.said.replace(code, value) -%}{%- endfor -%}{{ day.said }}{%- endmacro %}\n"
)


# Errors of a template that takes no record. RuntimeError: a macro that calls itself without an end.
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def describe_refusal(error: BaseException) -> str:
    """Describe an error of REFUSALS: the template's own message, with its kind where the template did not raise it."""
    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"


_DEFAULTS = "{#- defaults of variables, set by the run's configuration -#}"


def set_variables(tokenizer, variables: Mapping[str, bool | str]) -> None:
    """Give the tokenizer's chat template, or each of several, defaults of its variables, in place of earlier ones."""
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif -%}}"
        for name, value in sorted(variables.items())
    )
    template = without_variables(tokenizer.chat_template)
    opening = _DEFAULTS + defaults + _DEFAULTS if defaults else ""
    if isinstance(template, dict):
        tokenizer.chat_template = {name: opening + one for name, one in template.items()}
    else:
        tokenizer.chat_template = opening + template


def without_variables(template: Any) -> Any:
    """Return a chat template, or templates by name, without the defaults that `set_variables` gave it."""
    if isinstance(template, dict):
        return {name: without_variables(one) for name, one in template.items()}
    return template.rpartition(_DEFAULTS)[2] if template and template.startswith(_DEFAULTS) else template


@overload
def apply_template(
    tokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, prompt: bool = False
) -> str: ...


@overload
def apply_template(
    tokenizer, messages: list[list[dict[str, Any]]], tools: list[dict[str, Any]] | None, *, prompt: bool = False
) -> list[str]: ...


def apply_template(tokenizer, messages, tools, *, prompt=False):
    """Render a conversation to its text, or each of several, whose tools are then prepared once.

    prompt: write the generation prompt after it.

    Raises:
        REFUSALS: the template refuses the conversation, passes a limit, or there is no template.
    """
    template = tokenizer.get_chat_template(tools=tools)
    if "strftime_now" in template:
        template = _CLOCK + template
    if len(_passed[template]) >= MOST_PASSED:
        raise LimitPassed(f"{_passed[template][-1]} ({MOST_PASSED} times; it is not tried again)")
    # A template is a program: the sandbox bounds ranges alone, not `'x' * 10**10`, nor loops inside loops.
    try:
        with limit_processor_time(MOST_SECONDS), nullcontext() if template in _tried else limit_memory(MOST_MEMORY):
            text = tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, add_generation_prompt=prompt, tokenize=False
            )
        length = max(map(len, [text] if isinstance(text, str) else text), default=0)
        if length > MOST_CHARACTERS:
            raise LimitPassed(f"it writes {length:,} characters, more than {MOST_CHARACTERS:,}")
    except LimitPassed as error:
        _passed[template].append(error.with_traceback(None))
        raise
    _tried.add(template)
    return text
