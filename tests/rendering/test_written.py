"""What a record holds is in its rendering, or the record is refused: tools, messages, answers, calls."""

from __future__ import annotations

import json

import pytest

from helpers import golden
from helpers.family_templates import make_template
from helpers.template_cases import with_template
from helpers.template_forms import DECLARED, FORMS, PLAIN, chat, make_tokenizer, rounds
from kd.batching.check_lengths import describe_unseen
from kd.config.schema import Data, DemoCorpus, Stage
from kd.records.checks import DataError
from kd.records.record import Record, parse_record
from kd.rendering.beginnings import Beginnings
from kd.rendering.encode import annotate_sequences, encode_prompt
from kd.rendering.written import check_prompt

BARE = PLAIN.replace(DECLARED, "")
ROLES = {
    role: PLAIN.replace("{% for m in messages %}", f"{{% for m in messages if m.role != '{role}' %}}")
    for role in ("system", "user", "tool")
}


def encode_each_way(record: Record, tokenizer) -> None:
    for turns in ("auto", "whole", "each"):
        annotate_sequences(record, tokenizer, turns)


def refuses_each_way(record: Record, tokenizer, match: str) -> None:
    for turns in ("auto", "whole", "each"):
        with pytest.raises(DataError, match=match):
            annotate_sequences(record, tokenizer, turns)


def talk(*messages: tuple[str, str], tools: tuple[str, ...] = ()) -> Record:
    said = [{"role": role, "content": content} for role, content in messages]
    return parse_record({"id": "r", "messages": said, "tools": list(map(golden.tool, tools))}, "x")


def calls(*results: str, answer: str = "It is 23 degrees.") -> Record:
    """Make a record of parallel calls with these results."""
    made = [golden.call(f"call{at:05}", "stop", {"days": at}) for at in range(len(results))]
    messages = [
        {"role": "user", "content": "Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": made},
        *({"role": "tool", "tool_call_id": call["id"], "content": result} for call, result in zip(made, results)),
        {"role": "assistant", "content": answer},
    ]
    return parse_record({"id": "r", "messages": messages, "tools": [golden.tool("stop")]}, "x")


def are_unseen(record: Record, tokenizer) -> set[bool]:
    found = (annotate_sequences(record, tokenizer, turns) for turns in ("auto", "whole", "each"))
    return {one.are_unseen for sequences in found for one in sequences}


def test_a_template_that_shows_no_tool_is_told_and_one_that_shows_some_is_refused():
    bare = make_tokenizer(BARE)
    assert True in are_unseen(rounds(1), bare)  # a later turn has the name in a call before it
    assert encode_prompt(rounds(1), 1, bare)
    named = talk(("user", "May I find it?"), ("assistant", "Yes"), tools=("find", "stop"))  # a user's word
    assert are_unseen(named, bare) == {True}
    only_one = PLAIN.replace(DECLARED, "{{ tools[0].function.name if tools }}\n")
    record = talk(("user", "Hi"), ("assistant", "Hello"), tools=("find", "stop"))
    refuses_each_way(record, make_tokenizer(only_one), "leaves stop out of the prompt, and shows others")
    stage = Stage(name="a", mix={"echo": 1}, max_length=500)
    (said,) = describe_unseen(Data(stages=(stage,), demo=DemoCorpus()), [[rounds(1)] * 9], bare)
    assert said.startswith("stage a: in 8 of its first 8 sequences the chat template shows none of the offered tools")
    shown = rounds(1)
    shown.messages[0]["content"] = f"You have {json.dumps(shown.tools)}. Oslo?"
    assert not list(describe_unseen(Data(stages=(stage,), demo=DemoCorpus()), [[shown]], bare))


def test_tools_that_the_data_itself_declares_are_there():
    record = rounds(2)
    declared = json.dumps(record.tools)
    record.messages[0]["content"] = f"You have {declared}. Oslo?"
    assert are_unseen(record, make_tokenizer(BARE)) == {False}
    record = rounds(2)
    record.messages.insert(0, {"role": "system", "content": f"You have {declared}."})
    encode_each_way(record, make_tokenizer(BARE))
    encode_each_way(talk(("user", "Hi"), ("assistant", "Hello")), make_tokenizer(BARE))


def test_tools_before_the_last_user_are_not_asked_of_who_speaks_first():
    tokenizer = make_tokenizer(FORMS["tools before the last user"])
    record = talk(("assistant", "I am Bo."), ("user", "Hi"), ("assistant", "Yes?"), tools=("stop",))
    encode_each_way(record, tokenizer)
    assert are_unseen(record, make_tokenizer(BARE)) == {True, False}  # of each turn by itself the first is not asked


def test_a_name_that_json_escapes_is_found():
    source = "{% for t in tools or [] %}{{ t.function.name | tojson }}{% endfor %}" + BARE
    record = talk(("user", "Hi"), ("assistant", "Hello"), tools=('say "so"',))
    encode_each_way(record, make_tokenizer(source))


@pytest.mark.parametrize(
    ("role", "messages", "index"),
    [
        ("system", (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")), 0),
        ("system", (("user", "Hi"), ("system", "Be brief."), ("assistant", "Hello")), 1),
        ("user", (("user", "Hi"), ("assistant", "Hi, you.")), 0),
        ("user", (("system", "S"), ("user", "So?"), ("assistant", "So."), ("user", "Why?"), ("assistant", "So.")), 1),
    ],
)
def test_a_message_that_the_template_drops_is_refused(role, messages, index):
    tokenizer, record = make_tokenizer(ROLES[role]), talk(*messages)
    if role == "system" and index == 0:  # it opens the first user's words
        encode_each_way(record, tokenizer)
        return
    refuses_each_way(record, tokenizer, rf"record r: messages\[{index}\]: the chat template leaves this {role} ")
    encode_each_way(record, make_tokenizer(PLAIN))


def test_a_result_that_the_template_drops_is_refused_though_the_answer_repeats_it():
    tokenizer = make_tokenizer(ROLES["tool"])
    refuses_each_way(
        rounds(2), tokenizer, r"messages\[2\]: the chat template leaves this tool message out \('23 degrees'"
    )
    with pytest.raises(DataError, match=r"messages\[6\]: .* tool message out"):
        encode_prompt(rounds(2), 7, tokenizer)
    first = "{% for m in messages %}{% if m.role != 'tool' or messages[loop.index0 - 1].role != 'tool' %}"
    one = make_tokenizer(
        PLAIN.replace("{% for m in messages %}", first).replace("\n{% endfor %}{% if", "\n{% endif %}{% endfor %}{% if")
    )
    refuses_each_way(calls("23", "23"), one, r"messages\[2\]: .* tool message out \('23'")
    refuses_each_way(calls("23", "3"), one, r"messages\[3\]: .* tool message out \('3'")


def test_results_may_be_written_in_another_order_trimmed_and_as_json():
    backwards = PLAIN.replace("{{ m.content }}", "{{ m.content | trim if m.role != 'tool' else (m.content | tojson) }}")
    tokenizer = make_tokenizer(backwards)
    encode_each_way(calls(' {"a": "b\\n"} ', "3", "31", "é\n\n\\", ""), tokenizer)
    other = "(messages[loop.index0 - 1] if messages[loop.index0 - 1].role == 'tool' else messages[loop.index0 + 1])"
    moved = (
        f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{% if m.role == 'tool' %}}{{{{ {other}.content }}}}"
    )
    moved += "{% else %}"
    swapped = PLAIN.replace(PLAIN[len(DECLARED) : PLAIN.index("{{ m.content }}")], moved)
    swapped = swapped.replace("{{ m.content }}", "{{ m.content }}{% endif %}", 1)
    tokenizer = make_tokenizer(swapped)
    assert "tool\n31<|im_end|>\n<|im_start|>tool\n3<" in annotate_sequences(calls("3", "31"), tokenizer)[0].text


def test_most_of_a_long_text_is_enough():
    """Templates take switches out of a system prompt, and indent what they quote."""
    without = PLAIN.replace("{{ m.content }}", "{{ m.content | replace('/no_think', '') | indent(4) }}")
    text = "Be brief and do as\nyou are asked, in a few\n\nwords at the most. /no_think"
    encode_each_way(talk(("system", text), ("user", text), ("assistant", "Hello")), make_tokenizer(without))
    half = PLAIN.replace("{{ m.content }}", "{{ m.content[:40] }}")
    record = talk(("user", text), ("assistant", "Hello"))
    refuses_each_way(record, make_tokenizer(half), r"messages\[0\]: .*leaves this user message out")


def test_an_answer_that_the_template_drops_is_refused():
    muted = PLAIN.replace("{{ m.content }}", "{{ m.content if m.content != 'Hello' }}")
    tokenizer = make_tokenizer(muted)
    refuses_each_way(
        chat("Hi", "Hello"), tokenizer, r"messages\[1\]: the chat template leaves this answer out of its turn"
    )
    encode_each_way(chat("Hi", "Hello you"), tokenizer)


ARGUMENTS = [
    ({"city": "Oslo", "days": 3}, True, True),
    ({"city": 'say "hi", then', "days": 3}, True, False),
    ({"city": 'x", days="3'}, False, True),
    ({"city": "one\ntwo"}, True, True),
    ({"city": "a, b"}, True, False),
]


@pytest.mark.parametrize(("arguments", "quoted", "bare"), ARGUMENTS)
def test_calls_that_are_not_read_back_are_refused(arguments, quoted, bare, tokenizer):
    record = calls("1")
    record.messages[1]["tool_calls"][0]["function"]["arguments"] = arguments
    for name, holds in (("lfm2", True), ("quotes_as_they_are", quoted), ("llama32_pythonic", bare)):
        other = with_template(tokenizer, make_template(name), "<s>", "</s>")
        if holds:
            annotate_sequences(record, other)
        else:
            with pytest.raises(DataError, match=r"record r: messages\[1\]: the calls are not read back from the turn"):
                annotate_sequences(record, other)


def test_a_template_whose_calls_are_not_read_is_for_another_check():
    """Its syntax is located, and not learned: nothing is known of what is read back."""
    record = calls("1")
    record.messages[1]["tool_calls"][0]["function"]["arguments"] = {"city": "a, b"}
    odd = PLAIN.replace(
        "<tool_call>{{ c.function|tojson }}</tool_call>", "{{ c.function.arguments|tojson }}{{ c.function.name }}"
    )
    with pytest.raises(DataError, match="not in the rendered turn"):
        annotate_sequences(record, make_tokenizer(odd))


def test_a_prompt_is_checked_where_no_conversation_may_end_in_a_turn():
    strict = "{% if not add_generation_prompt %}{{ raise_exception('no') }}{% endif %}" + PLAIN
    beginnings = Beginnings(rounds(2), make_tokenizer(strict))
    (prompt,) = beginnings.prompts([5])
    check_prompt(beginnings, 5, prompt)
    with pytest.raises(DataError, match=r"messages\[4\]"):
        check_prompt(beginnings, 5, prompt.replace("Oslo, 1?", ""))
