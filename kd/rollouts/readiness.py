"""Check of a stage's rollouts before a model is loaded: its prompts fit, and its rewards like the records' own
answers."""

from __future__ import annotations

from collections.abc import Sequence

from kd.config.schema import Data, Stage
from kd.errors import SpanwiseError
from kd.records.checks import DataError
from kd.rendering.encode import annotate_sequences
from kd.rollouts.answer import Judge
from kd.rollouts.decode import Sampled
from kd.rollouts.prompts import PromptOrder
from kd.rollouts.sampler import find_stop_ids
from kd.sources.source import Source

_LOOKED_AT = 32  # prompts of a stage


def check_rollouts(data: Data, sources: Sequence[Source], tokenizer) -> list[str]:
    """Check every stage that has rollouts; return a sentence for each.

    Raises:
        DataError, CallSyntaxError, RewardError: no prompt is short enough, calls are not read back, or a reward fails.
    """
    return [
        judge_records(stage, source, tokenizer)
        for stage, source in zip(data.stages, sources)
        if stage.rollouts is not None
    ]


def judge_records(stage: Stage, source: Source, tokenizer) -> str:
    """Judge the records' own answers to a stage's first prompts as if the student had written them; see check_rollouts.

    A reward that does not give its best to them asks the student for something else than its records teach.
    """
    rollouts = stage.rollouts
    assert rollouts is not None, "a stage with rollouts"
    judge = Judge(tokenizer, rollouts.rewards, stop_ids=find_stop_ids(None, tokenizer), repairs=False)
    order = PromptOrder(source, tokenizer, "check", stage.max_length - rollouts.max_new_tokens, rollouts.no_tool)
    values, least = [], ("", 1.0, {})
    for _ in range(_LOOKED_AT):
        asked = order.take()
        record = source[asked.record]
        number = sum(message["role"] == "assistant" for message in record.messages[: asked.turn])
        try:
            (own,) = annotate_sequences(record, tokenizer, "each", only=number)
        except DataError:
            continue
        ids = own.encoded.input_ids[len(asked.ids) :]
        answer = judge.judge(record, asked.turn, asked.number, 0, asked.ids, Sampled(ids, [0.0] * len(ids)))
        values.append(answer.value)
        if answer.value < least[1]:
            least = (f"{record.id}, messages[{asked.turn}]", answer.value, answer.parts)
    if not values:
        raise SpanwiseError(f"stage {stage.name}: rollouts: no turn of {_LOOKED_AT} prompts could be rendered")
    found = f"the records' own answers to {len(values)} prompts have the mean reward {sum(values) / len(values):.3g}"
    if least[0]:
        parts = ", ".join(f"{name} {value:.3g}" for name, value in least[2].items())
        found += f", least in {least[0]} ({parts})"
    left_out = f"; {order.num_left_out} prompts are too long and left out" if order.num_left_out else ""
    return f"stage {stage.name}: rollouts: {found}{left_out}"
