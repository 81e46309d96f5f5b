"""Answer of the student: its tokens and span bits, its reward, and its correction where a call is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kd.records.record import Record
from kd.rendering.call_syntax import find_syntax
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH, Span, find_token_ranges
from kd.rewards.reward import Mixture, list_wanted
from kd.rollouts.correction import Correction, correct, is_wrong
from kd.rollouts.decode import Sampled
from kd.rollouts.prompts import is_no_tool
from kd.rollouts.token_text import find_offsets, find_repetition
from kd.toolcalls.grounding import CarriedIndex
from kd.toolcalls.json_values import encode_json, same_json
from kd.toolcalls.locate import locate_in
from kd.toolcalls.parsed import ParsedCalls

_SHOWN = 500  # characters of a text that is kept for people


class Answer(NamedTuple):
    """One of the answers to a prompt, in plain values, as a checkpoint keeps it."""

    number: int  # of the prompt (kd/rollouts/prompts.py)
    sample: int
    record_id: str
    turn: int
    weight: float  # of the record, in every term
    no_tool: bool  # tools are offered and none is due
    prompt: list[int]
    ids: list[int]
    log_probs: list[float]
    bits: list[int]  # of each token
    text: str  # without the stop
    finished: bool
    repeats_from: int | None  # first token of the second time, where it ends in a loop
    value: float  # reward
    parts: dict[str, float]
    asked: str  # last words of the user, cut, for people
    wanted: str  # the record's own answer, cut, for people
    hacked: bool  # it is empty, or makes a call more often than the record does
    correction: Correction | None


class Judge:
    """Reader and judge of answers.

    Args:
        rewards: name -> weight.
        repairs: whether wrong calls are corrected.

    Raises:
        CallSyntaxError: the calls that the chat template writes are not read back.
        RewardError: a reward cannot be found.
    """

    def __init__(self, tokenizer, rewards: dict[str, float], *, stop_ids: Sequence[int], repairs: bool):
        self._tokenizer, self._stop_ids, self._repairs = tokenizer, frozenset(stop_ids), repairs
        self._reader, self._mixture = find_syntax(tokenizer), Mixture(rewards)

    def judge(
        self, record: Record, turn: int, number: int, sample: int, asked: Sequence[int], drawn: Sampled
    ) -> Answer:
        """Judge the tokens `drawn` after the prompt `asked`; an answer that was cut has the reward 0.

        Raises:
            RewardError: a reward failed.
        """
        ids, finished = list(drawn.ids), bool(drawn.ids) and drawn.ids[-1] in self._stop_ids
        text, offsets = find_offsets(ids[: len(ids) - finished], self._tokenizer)
        offsets += [(len(text), len(text))] * finished
        calls = self._reader.parse(text, record.tools)
        reward = self._mixture(record, turn, text, calls)
        correction = None
        if self._repairs and is_wrong(record, turn, calls, finished):
            correction = correct(record, turn, asked, ids, calls, self._tokenizer)
        return Answer(
            number,
            sample,
            record.id,
            turn,
            1.0 if record.quality is None else float(record.quality),
            is_no_tool(record, turn),
            list(asked),
            ids,
            list(drawn.log_probs),
            self._find_bits(record, turn, text, offsets, calls),
            text,
            finished,
            find_repetition(ids),
            reward.value if finished else 0.0,
            dict(reward.parts) if finished else dict.fromkeys(reward.parts, 0.0),
            next((one["content"] for one in record.messages[:turn][::-1] if one["role"] == "user"), "")[:_SHOWN],
            _describe_wanted(record, turn)[:_SHOWN],
            _is_hacked(record, turn, text, calls),
            correction,
        )

    def _find_bits(
        self, record: Record, turn: int, text: str, offsets: list[tuple[int, int]], calls: ParsedCalls
    ) -> list[int]:
        """Find the span bits of each token: TRUTH of all, and names, arguments and carried values where they stand."""
        spans, cursor = [], 0
        for call in calls.calls:
            places = locate_in(self._reader.syntax, text, cursor, len(text), [call])
            if places is None:
                continue
            spans += [Span(TOOL, *places[0].name), Span(ARGS, *places[0].arguments)]
            cursor = places[0].end
        carried = CarriedIndex()
        for message in record.messages[:turn]:
            if message["role"] == "tool":
                carried.add(message["content"] or "")
        for value in carried.find(text):
            if not any(value.start < end and start < value.end for start, end in calls.spans):
                spans.append(Span(INTEGRATION, value.start, value.end))
        bits = [TRUTH] * len(offsets)
        for span, (first, end) in zip(spans, find_token_ranges(offsets, spans)):
            for token in range(first, end):
                bits[token] |= span.bit
        return bits


def _describe_wanted(record: Record, turn: int) -> str:
    calls = "\n".join(encode_json(call).decode() for call in list_wanted(record, turn))
    return calls or record.messages[turn].get("content") or ""


def _is_hacked(record: Record, turn: int, text: str, calls: ParsedCalls) -> bool:
    """Tell whether an answer is empty, or makes one call more often than the record."""
    if not text.strip():
        return True
    wanted = list_wanted(record, turn)
    return any(_count(call, calls.calls) > max(_count(call, wanted), 1) for call in calls.calls)


def _count(call: dict[str, Any], among: list[dict[str, Any]]) -> int:
    return sum(same_json(call, other) for other in among)


def advantages(values: Sequence[float], *, scale_by_deviation: bool = False) -> list[float]:
    """Compare each reward of a prompt's answers with the mean of the others (leave-one-out); [] and one give zeros.

    scale_by_deviation: divide by the rewards' standard deviation, where that is above 0.
    """
    if len(values) < 2:
        return [0.0] * len(values)
    mean = sum(values) / len(values)
    found = [len(values) / (len(values) - 1) * (value - mean) for value in values]
    if max(values) == min(values):
        return [0.0] * len(values)
    if scale_by_deviation:
        spread = deviation(values)
        found = [one / spread for one in found]
    return found


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of all values, of which there is at least one."""
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5


def list_groups(answers: Sequence[Answer]) -> list[list[Answer]]:
    """List the answers of each prompt together, in the order of the prompts."""
    groups: dict[int, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.number, []).append(answer)
    return list(groups.values())
