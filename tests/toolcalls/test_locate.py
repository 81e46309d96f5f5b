"""Calls located in a turn: each form, what is refused, calls in the text of an assistant, and tokens at a span's
edges.
"""

from __future__ import annotations

import json
import time

import pytest

from kd.records.checks import DataError
from kd.records.record import parse_record
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH, Span, find, find_token_bits, find_token_ranges
from kd.toolcalls.json_scan import find_text_calls
from kd.toolcalls.locate import locate_calls


def located(text: str, *calls: tuple[str, dict]):
    """(name, characters of ARGS as text) of each call, or None; names are checked here."""
    places = locate_calls(text, 0, len(text), [{"name": name, "arguments": arguments} for name, arguments in calls])
    if places is None:
        return None
    assert [text[slice(*place.name)] for place in places] == [name for name, _ in calls]
    return [(place.name[0], text[slice(*place.arguments)]) for place in places]


PARIS = {"city": "Paris", "days": 3}
FORMS = {  # text of one call of get_weather(PARIS): its ARGS
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}': '{"city": "Paris", "days": 3}',
    '{"parameters":{"days":3.0,"city":"Paris"},"name":"get_weather"}': '{"days":3.0,"city":"Paris"}',
    '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "\\u0050aris", '
    '"days": 3}}}': '{"city": "\\u0050aris", "days": 3}',
    '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", '
    '\\"days\\": 3}"}': '"{\\"city\\": \\"Paris\\", \\"days\\": 3}"',
    '{"tool_name": "get_weather", "parameters": {"city": "Paris", "days": 3}}': '{"city": "Paris", "days": 3}',
    '[{"get_weather": {"city": "Paris", "days": 3}}]': '{"city": "Paris", "days": 3}',
    '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}': '{"city": "Paris", "days": 3}',
    'function<sep>get_weather\n```json\n{"city": "Paris", "days": 3}\n```': '{"city": "Paris", "days": 3}',
    'to=functions.get_weather <|json|>{"city": "Paris", "days": 3}': '{"city": "Paris", "days": 3}',
    "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>": "<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>",  # noqa: E501
    '<invoke name="get_weather"><parameter name="days" type="int">3</parameter><parameter '
    'name="city">Paris</parameter></invoke>': '<parameter name="days" type="int">3</parameter><parameter '
    'name="city">Paris</parameter>',
    "<get_weather><city>Paris</city><days>3</days></get_weather>": "<city>Paris</city><days>3</days>",
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>": "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>",  # noqa: E501
    "<name>get_weather</name><parameters><city>Paris</city><days>3</days></parameters>": "<city>Paris</city><days>3</days>",  # noqa: E501
    '[get_weather(city="Paris", days=3)]': '(city="Paris", days=3)',
    "get_weather.call( days = 3 , city='Paris' )": "( days = 3 , city='Paris' )",
}


@pytest.mark.parametrize("text", FORMS)
def test_each_form(text):
    assert located(text, ("get_weather", PARIS)) == [(text.index("get_weather"), FORMS[text])]
    twice = f"get_weather: {text} and {text}"
    if "[ARGS]" not in text and "```" not in text and "to=" not in text:  # there the name must stand once
        found = located(twice, ("get_weather", PARIS), ("get_weather", PARIS))
        assert [at for at, _ in found] == [
            twice.index(text) + text.index("get_weather"),
            twice.rindex(text) + text.index("get_weather"),
        ]
    assert located(text, ("get_weather", {**PARIS, "days": 4})) is None  # another value
    assert located(text, ("get_weather", {"city": "Paris"})) is None  # one too many
    assert located(text, ("get_weather", {**PARIS, "x": 1})) is None  # one too few
    assert located(text, ("get", PARIS)) is None and located(text, ("weather", PARIS)) is None
    assert located(text, ("get_weather", PARIS), ("get_weather", PARIS)) is None


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ('{"name": "f", "arguments": {}}', "{}"),
        ("f[ARGS]{}", "{}"),
        ("<function=f>\n</function>", ""),
        ('<invoke name="f"></invoke>', ""),
        ("<tool_call>f\n</tool_call>", ""),
        ("f()", "()"),
        ("f( )", "( )"),
    ],
)
def test_a_call_without_arguments(text, args):
    assert located(text, ("f", {})) == [
        (text.index("f", text.index("=") if "=" in text else 0) if "invoke" not in text else 14, args)
    ]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (
            "f(a=True, b=None, c=[1, 'x', (2,)], d={'k': False})",
            {"a": True, "b": None, "c": [1, "x", [2]], "d": {"k": False}},
        ),
        ("f(a=true, b=null, c=-1e-3)", {"a": True, "b": None, "c": -0.001}),
        ('f(a="say \\"hi\\", (ok)", b=")")', {"a": 'say "hi", (ok)', "b": ")"}),
        ('f(a="say "hi"")', {"a": 'say "hi"'}),  # not escaped at all, as some templates write
        ('f(a=["\\ud83d\\ude00", True])', {"a": ["😀", True]}),
        ("<f><a>True</a><b>None</b><c>{'k': 1}</c></f>", {"a": True, "b": None, "c": {"k": 1}}),
        ("<f><a>\n  x </a></b>\n</a></f>", {"a": "  x </a></b>"}),
        ("<f><a>&lt;b&gt; &amp; &#34;q&#34;</a></f>", {"a": '<b> & "q"'}),
        ("<f><a></a></f>", {"a": ""}),
    ],
)
def test_values_as_templates_write_them(text, arguments):
    assert located(text, ("f", arguments))
    assert located(text, ("f", {**arguments, "a": 77})) is None


def test_a_word_of_the_template_that_is_also_the_name_is_not_guessed_at():
    assert located("function<sep>json\n```json\n{}\n```", ("json", {})) is None
    assert located("function<sep>f\n```json\n{}\n```", ("f", {}))


def test_a_copy_inside_a_later_call_is_not_the_call():
    inner = {"name": "f", "arguments": {"x": 1}}
    text = f"[f(x=1), g(y={json.dumps(inner)})]"
    assert [at for at, _ in located(text, ("f", {"x": 1}), ("g", {"y": inner}))] == [1, 9]


def conversation(content: str, calls=(), result: str = "") -> tuple:
    messages = [
        {"role": "user", "content": "q"},
        *([{"role": "assistant", "content": "Wait."}, {"role": "tool", "content": result}] if result else []),
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"function": {"name": n, "arguments": a}} for n, a in calls],
        },
    ]
    tools = [{"name": name} for name in ("f", "get", "get_weather")]
    return parse_record({"id": "r", "messages": messages, "tools": tools}, "x"), len(messages) - 1


def spans_of(record, index: int, turn: str) -> list[tuple[int, str]]:
    text = f"<user>q<assistant>{turn}"
    return [
        (span.bit, text[span.start : span.end])
        for span in find(record, text, [(index, len(text) - len(turn), len(text))]).spans
        if span.bit != TRUTH
    ]


def test_what_the_assistant_says_beside_its_call_is_not_searched():
    quote = '{"name": "f", "arguments": {"x": 1}}'
    for content in (quote, f"I write {quote}", "f"):
        record, index = conversation(content, [("f", {"x": 1})])
        for turn in (f"{content}<call>{quote}</s>", f"<call>{quote}</call>{content}</s>"):
            text = f"<user>q<assistant>{turn}"
            if content == quote:  # one of the two is the call
                with pytest.raises(DataError, match=r"record r: messages\[1\].content repeats its tool_calls"):
                    find(record, text, [(index, 18, len(text))])
                continue
            tool = next(s for s in find(record, text, [(index, 18, len(text))]).spans if s.bit == TOOL)
            assert tool.start == 18 + turn.index("<call>") + len("<call>") + quote.index("f")
        if content != "f":  # the template leaves the content out: fine, unless it is altered and still quotes the call
            with pytest.raises(DataError, match=r"record r: messages\[1\]: the call of f is not in the rendered turn"):
                spans_of(record, index, f"{content.upper()} {quote}</s>")
    record, index = conversation("I call it.", [("f", {"x": 1})])
    assert spans_of(record, index, f"<call>{quote}</s>") == [(TOOL, "f"), (ARGS, '{"x": 1}')]


def test_an_answer_that_stands_twice_has_no_certain_place():
    record, index = conversation("think", result="think")
    with pytest.raises(DataError, match="stands there more than once"):
        spans_of(record, index, "<think></think>think</s>")
    assert spans_of(record, index, "think</s>") == [(INTEGRATION, "think")]


NAMES = {"f", "get", "get_weather"}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('Sure. {"name": "f", "arguments": {"a": {"b": [{"c": "}{"}]}}} ok', [("f", {"a": {"b": [{"c": "}{"}]}})]),
        (
            '<tool_call>{"arguments": {}, "name": '
            '"get"}</tool_call><tool_call>\n{"name":"get_weather","parameters":{"q":"\\"}"}}\n</tool_call>',
            [("get", {}), ("get_weather", {"q": '"}'})],
        ),
        (
            '[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]',
            [("f", {"x": 1})],
        ),
        ('```json\n{"function": "f", "args": {"x": 1e-3}}\n```', [("f", {"x": 0.001})]),
        (
            '{"name": "f", "arguments": {"x": {"name": "get", "arguments": {}}}}',
            [("f", {"x": {"name": "get", "arguments": {}}})],
        ),
        ('{"tool_calls": [{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]}', [("f", {}), ("f", {})]),
        ('{"name": "f", "arguments": {"x": 1}', []),  # not closed
        ('{"name": "other", "arguments": {}}', []),  # no tool of the record's
        ('{"name": "f", "description": "d", "parameters": {"type": "object"}}', []),  # a definition
        ('{"name": "f", "arguments": [1]} {"name": "f"} {"name": 1, "arguments": {}} {"arguments": {}}', []),
        ('{"name": "f", "name": "get", "arguments": {}}', []),
        ('{"name": "f", "arguments": "not json"} {"note": "{\\"name\\": \\"f\\", \\"arguments\\": {}}"}', []),
        ("a set {1, 2}, code { return f({}) } and {}", []),
        ("{" * 3000 + '"', []),
        ('{"a":' * 3000, []),
        ("[" * 3000 + "{", []),
        ('{"name": "f", "arguments": ' + '{"a":' * 3000 + "}" * 3001, []),
    ],
)
def test_calls_in_the_text_of_an_assistant(text, calls):
    found = find_text_calls(text, NAMES)
    assert [(call.name, call.arguments) for call in found] == calls
    for call in found:
        assert text[slice(*call.name_at)] == call.name
        written = json.loads(text[slice(*call.arguments_at)])
        assert (json.loads(written) if isinstance(written, str) else written) == call.arguments


def test_without_tools_any_name_is_taken():
    assert [call.name for call in find_text_calls('{"name": "other", "arguments": {}}', ())] == ["other"]


def test_a_text_only_assistant_gets_the_same_spans():
    content = 'On it: {"name": "f", "arguments": {"city": "Paris"}} for Paris.'
    record, index = conversation(content, result='{"place": "Paris"}')
    found = find(record, f"<a>{content}</s>", [(index, 3, len(content) + 7)])
    assert [(call.message, call.name, call.arguments) for call in found.calls] == [(3, "f", {"city": "Paris"})]
    assert spans_of(record, index, f"{content}</s>") == [
        (TOOL, "f"),
        (ARGS, '{"city": "Paris"}'),
        (INTEGRATION, "Paris"),
    ]
    with pytest.raises(DataError, match=r"messages\[3\].content is not in the rendered turn"):
        spans_of(record, index, "something else</s>")


def test_time_grows_with_the_text():
    start = time.process_time()
    find_text_calls('{"a": {"b": "' + "x" * 200 + '"}} { "' * 5000, NAMES)
    locate_calls('{"a": [' * 50 + "f " * 20_000, 0, 40_350, [{"name": "f", "arguments": {}}])
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("offsets", "tokens"),
    [
        ([(0, 5), (5, 9), (9, 12)], (1, 2)),  # exactly the span
        ([(0, 3), (3, 6), (6, 12)], (1, 3)),  # both edges carry a neighbour's character
        ([(0, 4), (4, 5), (5, 7), (7, 9), (9, 10)], (2, 4)),  # neighbours' own tokens stay out
        ([(0, 5), (5, 5), (5, 7), (7, 7), (7, 9), (9, 9), (9, 12)], (2, 5)),  # no characters: in between only
        ([(0, 5), (5, 6), (5, 6), (6, 9), (9, 12)], (1, 4)),  # one character, two tokens (bytes)
        ([(0, 12)], (0, 1)),
    ],
)
def test_the_rule_of_the_edges(offsets, tokens):
    """Span [5, 9) of a text of 12 characters."""
    assert find_token_ranges(offsets, [Span(TOOL, 5, 9)]) == [tokens]
    assert [t for t, bits in enumerate(find_token_bits(offsets, [Span(TOOL, 5, 9)])) if bits] == list(range(*tokens))


def test_an_empty_span_has_no_token_and_a_turn_has_the_mark_before_its_text():
    assert (
        find_token_bits([(0, 5), (5, 9)], [Span(ARGS, 5, 5)])
        == [0, 0]
        == find_token_bits([(0, 5), (5, 9)], [Span(ARGS, 7, 7)])
    )
    assert find_token_bits([(0, 5), (5, 5), (5, 9)], [Span(TRUTH, 5, 9)]) == [0, TRUTH, TRUTH]
