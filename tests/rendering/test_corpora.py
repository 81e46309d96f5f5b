"""Records and chat templates that no one here wrote, given as files: every record is located, and rightly, or refused
with a reason.

    SPANWISE_CORPUS=DIR SPANWISE_TEMPLATES=DIR pytest tests/rendering/test_corpora.py
    python tests/rendering/test_corpora.py --corpus DIR --templates DIR --records 50       the same as a table, by
                                                                                           template

CORPUS: a folder of data files of any form; BFCL's possible_answer folders stand beside their questions. TEMPLATES: a
folder of
*.jinja files. SPANWISE_RECORDS: how many records of each file, 10 by default, drawn with a fixed seed; 0 is all. The
tokenizer is a byte-level BPE trained on the corpus here; what looks like a control token in a template is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from helpers import golden
from helpers.independent import Misplaced, check_located
from kd.records.checks import DataError
from kd.records.files import read_all
from kd.records.record import Record, parse_record
from kd.rendering.encode import TokenSpan, annotate

CORPUS, TEMPLATES = os.environ.get("SPANWISE_CORPUS"), os.environ.get("SPANWISE_TEMPLATES")
NUM_RECORDS = int(os.environ.get("SPANWISE_RECORDS", "10"))
_CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|\[/?[A-Z_]{3,30}\]|</?s>|<(?:start|end)_of_turn>|<[bep]os>"
)


class Outcome(NamedTuple):
    located: int
    refused: Counter  # by reason
    wrong: list[str]  # spans that are not where the calls are


def read_corpus(folder: str | Path, num_records: int) -> dict[str, list[Record]]:
    """File -> records, at most so many of each; a line that is no record must have been refused with its place."""
    files = sorted(
        path
        for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix in (".json", ".jsonl", ".gz", ".parquet", ".zst")
    )
    found: dict[str, list[Record]] = {}
    for item in read_all(files):
        if item.record is not None:
            found.setdefault(str(Path(item.file).relative_to(folder)), []).append(item.record)
        else:
            assert item.reason.startswith(f"{item.file}:{item.line}: ")
    rng = random.Random(1)
    return {
        name: rng.sample(records, num_records) if 0 < num_records < len(records) else records
        for name, records in found.items()
    }


def trained_on(corpus: dict[str, list[Record]], vocab_size: int = 3000) -> str:
    """A byte-level BPE, as JSON."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = (
        json.dumps([record.messages, record.tools], ensure_ascii=False)
        for records in corpus.values()
        for record in records[:40]
    )
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return core.to_str()


def with_template(core: str, template: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(core)
    tokenizer.add_special_tokens(sorted(set(_CONTROL.findall(template))))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def outcome(records: list[Record], tokenizer) -> Outcome:
    located, refused, wrong = 0, Counter(), []
    for record in records:
        try:
            found = annotate(record, tokenizer)
        except DataError as error:
            assert str(error).startswith(f"record {record.id}: ")
            refused[
                re.sub(
                    r"messages\[\d+\]|of \S+(, \S+)* is not|\d+", "…", str(error).removeprefix(f"record {record.id}: ")
                )[:110]
            ] += 1
            continue
        located += 1
        try:
            check_located(record, found, tokenizer)
        except Misplaced as error:
            wrong.append(str(error))
    return Outcome(located, refused, wrong)


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[Record]]:
    if not CORPUS:
        pytest.skip("SPANWISE_CORPUS names no folder of data files")
    return read_corpus(CORPUS, NUM_RECORDS)


@pytest.fixture(scope="module")
def core(corpus) -> str:
    return trained_on(corpus)


def given_templates() -> list[Path]:
    return sorted(Path(TEMPLATES).rglob("*.jinja")) if TEMPLATES else []


@pytest.mark.parametrize(
    "path",
    given_templates() or [None],
    ids=lambda path: "none given" if path is None else f"{path.parent.name}-{path.stem}",
)
def test_every_given_record_is_located_rightly_or_refused(path, request):
    if path is None:
        pytest.skip("SPANWISE_TEMPLATES names no folder of chat templates")
    tokenizer = with_template(request.getfixturevalue("core"), path.read_text(encoding="utf-8"))
    found = outcome([record for records in request.getfixturevalue("corpus").values() for record in records], tokenizer)
    assert not found.wrong, f"{len(found.wrong)} of {found.located} located wrongly, the first: {found.wrong[0]}"


@pytest.fixture(scope="module")
def small() -> tuple[list[Record], str]:
    records = [parse_record(golden.CONVERSATION, "golden")]
    return records, trained_on({"golden": records}, 600)


@pytest.mark.parametrize("name", golden.NAMES)
def test_the_check_holds_for_the_templates_written_here(name, small):
    records, core = small
    found = outcome(records, with_template(core, golden.template(name)))
    assert found == Outcome(1, Counter(), [])


@pytest.mark.parametrize("name", ["hermes", "xml_function", "python_calls", "mistral_args", "args_first"])
@pytest.mark.parametrize("kind", ["tool", "args", "truth"])
@pytest.mark.parametrize("by", [(1, 1), (-1, 0), (0, 1), (1, 0), (0, -1)])
def test_the_check_sees_a_span_that_is_one_token_off(name, kind, by, small):
    (record,), core = small
    tokenizer = with_template(core, golden.template(name))
    found = annotate(record, tokenizer)
    at = next(i for i, span in enumerate(found.spans) if span.kind == kind)
    moved = TokenSpan(kind, found.spans[at].start + by[0], found.spans[at].end + by[1])
    with pytest.raises(Misplaced):
        check_located(
            record, found._replace(spans=[moved if i == at else span for i, span in enumerate(found.spans)]), tokenizer
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--templates", required=True)
    parser.add_argument("--records", type=int, default=10)
    args = parser.parse_args()
    corpus = read_corpus(args.corpus, args.records)
    core = trained_on(corpus)
    print("\n".join(f"{name}: {len(records)} records" for name, records in corpus.items()))
    for path in sorted(Path(args.templates).rglob("*.jinja")):
        tokenizer = with_template(core, path.read_text(encoding="utf-8"))
        found = {name: outcome(records, tokenizer) for name, records in corpus.items()}
        refused, wrong = (
            sum((o.refused for o in found.values()), Counter()),
            [text for o in found.values() for text in o.wrong],
        )
        print(
            f"{path.parent.name}/{path.stem}: {sum(map(len, corpus.values()))} records, "
            f"{sum(o.located for o in found.values())} located, "
            f"{refused.total()} refused, {len(wrong)} wrong",
            flush=True,
        )
        for reason, count in refused.most_common(3):
            print(f"    {count} refused: {reason}")
        for text in wrong[:3]:
            print(f"    WRONG {text[:300]}")


if __name__ == "__main__":
    main()
