"""Comparison of a loaded tokenizer with its tokenizer.json, which is what serving stacks read.

transformers builds some tokenizer classes anew from the vocabulary and merges alone, and so drops the file's own
normalizer and pre-tokenizer: the same text then has other tokens, in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer as RawTokenizer

from kd.errors import SpanwiseError
from kd.models.model_files import COPY_AGAIN, StudentError, find_file, read_json
from kd.records.checks import DataError
from kd.rendering.turns import render_text
from kd.sources.source import Source

NUM_RECORDS = 16  # of each stage, that are compared
PROBE = (
    "1234567 3.14159 2026-11-29 0x1F",
    "it's  two spaces,\ttabs\n\nand lines\n",
    " a word, AnotherWord, snake_case and kebab-case",
    'call {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 20, 300]}}',
    "def f(x):\n    return x ** 2  # ok\n",
    "Ünïcode, cafe\u0301, 你好世界, приветствие, 😀👍🏽",
)
_NEAR = 20  # characters shown either side of a difference


class TokenizerError(SpanwiseError, ValueError):
    """Tokenizer that cannot be used, or that is not the one the teacher was trained with."""


def read_raw(source: str, revision: str | None = None) -> tuple[Path, RawTokenizer] | None:
    """Read the tokenizer.json of a folder or hub id; None where it has none on this machine.

    Raises:
        TokenizerError: it is damaged; the message names it.
    """
    file = find_file(source, "tokenizer.json", revision)
    if file is None or not os.path.lexists(file):
        return None
    try:
        if not file.is_file():
            read_json(file)  # says what it is
        return file, RawTokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        try:
            read_json(file)
        except StudentError as damage:
            raise TokenizerError(str(damage)) from None
        raise TokenizerError(
            f"{file}: no tokenizer that tokenizers {tokenizers.__version__} can read ({error}): {COPY_AGAIN}, or "
            "install a newer version of tokenizers"
        ) from None


def check_raw(tokenizer: Any, texts: Iterable[str], found: tuple[Path, RawTokenizer] | None) -> None:
    """Compare the ids that a loaded tokenizer and its tokenizer.json give to `texts`.

    found: from `read_raw`; nothing is compared where it is None.

    Raises:
        TokenizerError: they differ; the message has the first difference.
    """
    if found is None:
        return
    file, raw = found
    raw.no_truncation()
    raw.no_padding()
    known = raw.get_vocab()
    raw.add_tokens([token for token in tokenizer.added_tokens_decoder.values() if token.content not in known])
    difference = next(filter(None, (_find_difference(tokenizer, raw, text) for text in texts)), None)
    if difference:
        raise TokenizerError(
            f"{file}: loaded as {type(tokenizer).__name__}, {difference}. Serving stacks read the file itself, so the "
            f"teacher would see other tokens than it was trained with: set tokenizer_class to PreTrainedTokenizerFast "
            f"in {file.with_name('tokenizer_config.json')}; or, where transformers has a class of its own for this "
            "model_type, save the tokenizer as it is loaded (save_pretrained), and serve the teacher from that folder"
        )


def check_raw_on_records(tokenizer: Any, sources: Iterable[Source], source: str, revision: str | None = None) -> None:
    """Compare as `check_raw` does, on the first records of each of `sources`, as the template renders them.

    Records that the template refuses are left to those who train on them.

    Raises:
        TokenizerError: as `check_raw`.
    """
    check_raw(tokenizer, _render_first(tokenizer, sources), read_raw(source, revision))


def _render_first(tokenizer: Any, sources: Iterable[Source]) -> Iterator[str]:
    for records in sources:
        for index in range(min(NUM_RECORDS, len(records))):
            try:
                yield render_text(records[index], tokenizer)
            except DataError:
                continue


def _find_difference(tokenizer: Any, raw: RawTokenizer, text: str) -> str | None:
    ours = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    encoding = raw.encode(text, add_special_tokens=False)
    if ours == encoding.ids:
        return None
    at = next(
        (i for i, pair in enumerate(zip(ours, encoding.ids)) if pair[0] != pair[1]), min(len(ours), len(encoding.ids))
    )
    start = encoding.offsets[at][0] if at < len(encoding.offsets) else len(text)
    return (
        f"{text[max(start - _NEAR, 0) : start + _NEAR]!r} has the ids {ours[at : at + 8]} from "
        f"{text[start : start + 5]!r} on, and by the file {encoding.ids[at : at + 8]}"
    )
