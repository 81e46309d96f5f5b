"""Generated conversations in every template, under three kinds of tokenizer: spans are where the calls are, or are
refused.

Where a call truly is comes from rendering the record again with each name replaced by a mark: nothing of the code that
looks for calls has a part in it.
"""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import escape
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers import golden
from helpers.independent import true_names
from kd.records.checks import DataError
from kd.records.record import parse_record
from kd.rendering.encode import annotate
from kd.sources.demo import corpus as demo

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<｜tool▁sep｜>",
]
VOCABULARY = 1200
DROPS_CONTENT = {"llama31", "mistral_list"}  # of a message that calls
NAME_OUTSIDE = {"mistral_args", "deepseek_v3"}


def corpus() -> list[str]:
    texts = [json.dumps(vars(record), ensure_ascii=False) for record in demo.records("train", 250, seed=6)]
    return [
        *texts,
        *(golden.template(name) for name in golden.NAMES),
        "é漢😀ß \u200d½ [x=True, y=None](z)",
        *(chr(c) * 3 for c in range(32, 127)),
    ]


def byte_level_bpe() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            show_progress=False,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return core


def sentencepiece_unigram() -> Tokenizer:
    """Unigram over metaspaces, bytes for what it does not know."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(vocab_size=VOCABULARY, show_progress=False, special_tokens=SPECIAL, unk_token="<unk>"),
    )
    pieces = [tuple(piece) for piece in json.loads(core.to_str())["model"]["vocab"]]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    core.model = models.Unigram(pieces, unk_id=0, byte_fallback=True)
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    core.add_special_tokens(SPECIAL)
    return core


def wordpiece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    core.train_from_iterator(
        corpus(), trainers.WordPieceTrainer(vocab_size=VOCABULARY, show_progress=False, special_tokens=SPECIAL)
    )
    return core


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        build.__name__: PreTrainedTokenizerFast(
            tokenizer_object=build(),
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            clean_up_tokenization_spaces=False,
        )
        for build in (byte_level_bpe, sentencepiece_unigram, wordpiece)
    }


NAMES = st.sampled_from(
    ["get", "get_weather", "get_weather_map", "json", "function", "args", "f", "math.add", "add", "search-web", "call"]
) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True) | st.sampled_from(
    ["name", "arguments", "parameter", "city", "cit"]
)
CHARS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
STRINGS = CHARS | st.sampled_from(
    [
        '"',
        "'",
        "{}",
        "}",
        '{"name": "f", "arguments": {}}',
        "f()",
        "</parameter>",
        "</tool_call>",
        "é漢😀",
        "a\nb",
        "\\",
        "\\n",
        "]",
        ")",
        "5",
        "true",
        "",
        " ",
        "<b>&amp;",
        "\u2028",
        "get_weather",
        "<parameter=city>",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e-3, 1e22, -0.0, 1.0, 5])
    | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=5,
)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(KEYS, VALUES, max_size=3)), min_size=1, max_size=4)


def quotations(name: str, arguments: dict) -> list[str]:
    """The call as each template would write it, for the assistant to quote."""
    text = json.dumps(arguments, ensure_ascii=False)
    tagged = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return [
        f'{{"name": "{name}", "arguments": {text}}}',
        f'"{name}[ARGS]{text}',
        f"<function={name}>\n{tagged}</function>",
        f"[{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]",
    ]


@st.composite
def conversations(draw) -> dict:
    calls = draw(CALLS)
    if draw(st.integers(0, 9)) == 0:
        calls = (calls * 20)[:20]
    said = draw(
        st.sampled_from(
            ["", "", "I call {name} now.", "{quote}", "Like {quote}?", "{{not json}} {name}", " two  spaces "]
        )
    )
    said = said.format(name=calls[0][0], quote=draw(st.sampled_from(quotations(*calls[0]))))
    made = [golden.call(f"call{number:05}", name, arguments) for number, (name, arguments) in enumerate(calls)]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": draw(CHARS | st.just('{"t": 21.5, "s": "light rain"}'))}
        for call in made
    ]
    return {
        "id": "g",
        "tools": [golden.tool(name) for name in dict.fromkeys([*(name for name, _ in calls), "get_weather"])],
        "messages": [
            {"role": "user", "content": draw(CHARS | st.just(quotations(*calls[0])[0]))},
            {"role": "assistant", "content": said, "tool_calls": made},
            *results,
            {"role": "assistant", "content": draw(st.sampled_from(["Light rain, light rain.", "It is 21.5°.", "So."]))},
        ],
    }


def holds(written: str, arguments: dict) -> bool:
    """Whether the text of an ARGS span says `arguments`, by JSON's, Python's or the tags' own rules."""
    if written.startswith("("):
        return (
            all(
                a == b
                for a, b in zip(
                    *[
                        sorted(d.items())
                        for d in (
                            {k.arg: ast.literal_eval(k.value) for k in ast.parse("f" + written).body[0].value.keywords},
                            arguments,
                        )
                    ]
                )
            )
            if arguments
            else written == "()"
        )
    if written.startswith("<"):
        forms = [
            [
                str(value) if not isinstance(value, (dict, list)) else json.dumps(value, ensure_ascii=False)
                for value in arguments.values()
            ],
            [
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for value in arguments.values()
            ],
        ]
        function = "\n".join(f"<parameter={key}>\n{value}\n</parameter>" for key, value in zip(arguments, forms[0]))
        invoke = "\n".join(
            f'<parameter name="{key}">{escape(form) if isinstance(value, str) else form}</parameter>'
            for (key, value), form in zip(arguments.items(), forms[1])
        )
        return written in (function, invoke)
    if not written:
        return not arguments
    value = json.loads(written)
    return (json.loads(value) if isinstance(value, str) else value) == arguments


def check(data: dict, name: str, tokenizers: dict) -> bool:
    """Whether the record was located, in all tokenizers alike; asserts that where it was, it was rightly, and if not,
    that it may be refused.
    """
    record = parse_record(data, "g")
    for kind, tokenizer in tokenizers.items():
        tokenizer.chat_template = golden.template(name)
        try:
            found = annotate(record, tokenizer)
        except DataError as error:
            functions = [call["function"] for call in record.messages[1]["tool_calls"]]
            if "content repeats its tool_calls" in str(error):
                assert record.messages[1]["content"] in quotations(functions[0]["name"], functions[0]["arguments"])
                return False
            if "the calls are not read back" in str(error):  # of what XML's marks make of a value
                assert name.startswith("xml"), error
                return False
            assert str(error).startswith("record g: messages[1]: the call of")
            quoted = name in DROPS_CONTENT and any(f["name"] in record.messages[1]["content"] for f in functions)
            assert quoted or name in NAME_OUTSIDE and any(f["name"] in golden.template(name) for f in functions), error
            return False
        offsets = tokenizer(found.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        tools, args = ([s for s in found.spans if s.kind == wanted] for wanted in ("tool", "args"))
        starts = true_names(record, tokenizer, found.text)
        assert [call[1:] for call in found.calls] == [
            (c["function"]["name"], c["function"]["arguments"]) for c in record.messages[1]["tool_calls"]
        ]
        assert len(tools) == len(args) == len(found.calls) == len(starts)
        for number, (call, start) in enumerate(zip(found.calls, starts)):
            only(found, offsets, tools[number], start, start + len(call.name))
            decoded = tokenizer.decode(found.encoded.input_ids[tools[number].start : tools[number].end])
            assert call.name in (decoded.replace(" ", "") if kind == "wordpiece" else decoded)
            after = [start + len(call.name), starts[number + 1] if number + 1 < len(starts) else len(found.text)]
            if name == "args_first":
                after = [starts[number - 1] if number else 0, start]
            check_arguments(
                found, offsets, args[number], call.arguments, after, tokenizer if kind != "wordpiece" else None
            )
    return True


def only(found, offsets, span, start: int, end: int) -> None:
    """The tokens of `span` are those with a character of text[start:end], and no other."""
    assert [t for t, (a, b) in enumerate(offsets) if a < end and b > start and b > a] == list(
        range(span.start, span.end)
    )


def check_arguments(found, offsets, span, arguments: dict, window: list[int], tokenizer) -> None:
    if span.start == span.end:
        assert not arguments
        return
    # the span's own characters: those of its tokens less what a neighbour has in the first and the last
    first, last = offsets[span.start], offsets[span.end - 1]
    for start in range(first[0], first[1]):
        for end in range(last[1], last[0], -1):
            if (
                start >= window[0]
                and end <= window[1]
                and found.text[start:end][:1] in '{("<'
                and _holds(found.text[start:end], arguments)
            ):
                only(found, offsets, span, start, end)
                if tokenizer is not None:
                    decoded = tokenizer.decode(found.encoded.input_ids[span.start : span.end])
                    assert found.text[start:end].strip() in decoded
                return
    raise AssertionError(f"{found.text[first[0] : last[1]]!r} is not {arguments!r}")


def _holds(written: str, arguments: dict) -> bool:
    try:
        return holds(written, arguments)
    except (ValueError, SyntaxError):
        return False


COMMON = dict(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", golden.NAMES)
@given(data=conversations())
@settings(max_examples=14, **COMMON)
def test_spans_are_where_the_calls_are(name, tokenizers, data):
    check(data, name, tokenizers)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.NAMES)
@given(data=conversations())
@settings(max_examples=300, **COMMON)
def test_spans_are_where_the_calls_are_many_times(name, tokenizers, data):
    check(data, name, tokenizers)
