"""Check, before a model is loaded, that each stage has a record that its max_length has room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kd.batching.fit import FitPolicy, find_rows, fit
from kd.config.schema import Data, Training
from kd.records.checks import DataError
from kd.rendering.encode import UNSEEN, Annotated, annotate_sequences, encode_sequences
from kd.sources.source import Source

_FIRST = 8  # records that are tried before any length is looked at: nearly always one fits
_HINTED, _SHORTEST = 20_000, 200  # records whose size is asked for, and the shortest of them, which are tried then


def check_lengths(data: Data, sources: Sequence[Source], tokenizer) -> None:
    """Refuse a stage of which no record fits: it would train nothing, step after step.

    Of a large source the shortest records of an even sample are tried, by `size_hint`.

    Raises:
        DataError: names the stage's max_length and the shortest record.
    """
    for number, (stage, source) in enumerate(zip(data.stages, sources)):
        policy, lengths = FitPolicy(stage.max_length, data.too_long, turns=data.turns), list[int]()
        if not any(_fits(source, index, tokenizer, policy, lengths) for index in _candidates(source)) and lengths:
            raise DataError(
                f"data.stages.{number}.max_length: {stage.max_length} tokens have no room for any of the "
                f"{len(source):,} records ({len(lengths)} were looked at); the shortest has {min(lengths)} tokens: "
                "raise it, or cut the records"
            )


def describe_step(data: Data, sources: Sequence[Source], training: Training, world_size: int) -> Iterator[str]:
    """Yield a sentence for each stage whose records are fewer than one optimizer step takes."""
    size = training.micro_batch_size * training.gradient_accumulation * world_size
    for stage, source in zip(data.stages, sources):
        if size > len(source):
            yield (
                f"stage {stage.name}: a step takes {size:,} records and there are {len(source):,}, so that each step "
                "trains on all of them; lower training.micro_batch_size or gradient_accumulation for more steps"
            )


def describe_unseen(data: Data, sources: Sequence[Source], tokenizer) -> Iterator[str]:
    """Yield a sentence for each stage in whose first records tools are offered and the chat template shows none."""
    for stage, source in zip(data.stages, sources):
        found = [one for index in range(min(_FIRST, len(source))) for one in _annotate(source, index, tokenizer, data)]
        if num_unseen := sum(one.are_unseen for one in found):
            yield f"stage {stage.name}: in {num_unseen} of its first {len(found)} sequences {UNSEEN}"


def _annotate(source: Source, index: int, tokenizer, data: Data) -> list[Annotated]:
    try:
        return annotate_sequences(source[index], tokenizer, data.turns)
    except DataError:
        return []  # training has rules of its own for it


def _candidates(source: Source) -> Iterator[int]:
    yield from range(min(_FIRST, len(source)))
    hinted = range(0, len(source), max(1, len(source) // _HINTED))
    yield from (index for index in sorted(hinted, key=source.size_hint)[:_SHORTEST] if index >= _FIRST)


def _fits(source: Source, index: int, tokenizer, policy: FitPolicy, lengths: list[int]) -> bool:
    """Tell whether a record trains anything, and note the length of each of its sequences."""
    try:
        sequences = encode_sequences(source[index], tokenizer, policy.turns)
    except DataError:
        return False  # training has rules of its own for it
    lengths += [len(sequence.input_ids) for sequence in sequences]
    samples = (fit(sequence, policy) for sequence in sequences)
    return any(sample is not None and len(find_rows(sample.bits)) > 0 for sample in samples)
