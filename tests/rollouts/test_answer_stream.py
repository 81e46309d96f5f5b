"""Rounds of answers: prompts in an order of their own, shares of a step, resumption in the middle, guards."""

from __future__ import annotations

import pytest

from helpers.answer_cases import make_answer
from kd.config.schema import Guard, Guards, Rollouts
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.spans import TOOL
from kd.rollouts.answer import list_groups
from kd.rollouts.answer_stream import AnswerStream, StreamShape, draw_seed, share_out
from kd.rollouts.correction import Correction
from kd.rollouts.decode import Sampled
from kd.rollouts.guards import check, measure
from kd.rollouts.prompts import PromptOrder, is_no_tool
from kd.sources.demo.source import DemoSource


class OneRank:
    rank, world_size = 0, 1

    def gather(self, value):
        return [value]


class Sampler:
    """Answers whose tokens tell prompt, seed and the weights' age."""

    def __init__(self):
        self.num_refreshed, self.batches = 0, []

    def refresh(self):
        self.num_refreshed += 1

    def sample(self, prompts, seeds):
        self.batches.append([len(prompt) for prompt in prompts])
        return [Sampled([seed % 97, self.num_refreshed], [-1.0, -1.0]) for seed in seeds]

    def close(self):
        pass


class Judge:
    def judge(self, record, turn, number, sample, asked, drawn):
        return make_answer(drawn.ids, number=number, sample=sample, record_id=record.id, turn=turn, prompt=list(asked))


@pytest.fixture(scope="module")
def source():
    return DemoSource(60, 5, {"single": 0.5, "none": 0.1, "multi": 0.4})


def stream(source, tokenizer, sync_every=3, state=None):
    order = PromptOrder(source, tokenizer, "7:0", 4096)
    made = AnswerStream(
        source, order, Sampler(), Judge(), StreamShape(4, 2, 3, sync_every), seed="7:0", ranks=OneRank()
    )
    if state is not None:
        made.load_state_dict(state)
    return made


def test_prompts_are_turns_of_records_in_an_order_of_the_seed(source, tokenizer):
    order = PromptOrder(source, tokenizer, "7:0", 4096)
    taken = [order.take() for _ in range(70)]
    assert len({one.record for one in taken[:60]}) == 60 and [one.number for one in taken] == list(range(70))
    assert all(source[one.record].messages[one.turn]["role"] == "assistant" for one in taken)
    again = PromptOrder(source, tokenizer, "7:0", 4096)
    first = [again.take() for _ in range(25)]
    later = PromptOrder(source, tokenizer, "7:0", 4096)
    later.load_state_dict(again.state_dict())
    assert first + [later.take() for _ in range(45)] == taken
    assert [PromptOrder(source, tokenizer, "8:0", 4096).take().record] != [taken[0].record]


def test_a_part_of_the_prompts_is_of_turns_where_no_tool_is_due(source, tokenizer):
    order = PromptOrder(source, tokenizer, "7:0", 4096, no_tool=0.4)
    taken = [order.take() for _ in range(50)]
    assert sum(is_no_tool(source[one.record], one.turn) for one in taken) == 20


def test_prompts_without_room_are_left_out(source, tokenizer):
    order = PromptOrder(source, tokenizer, "7:0", 4096)
    lengths = sorted(len(order.take().ids) for _ in range(60))
    short = PromptOrder(source, tokenizer, "7:0", lengths[20])
    assert all(len(short.take().ids) <= lengths[20] for _ in range(30)) and short.num_left_out
    with pytest.raises(DataError, match=r"raise max_length, or lower max_new_tokens"):
        PromptOrder(source, tokenizer, "7:0", 3).take()


def test_no_tool_turns():
    tool = {"type": "function", "function": {"name": "f"}}
    user, said, result = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "tool"}
    assert is_no_tool(Record("r", [user, said], [tool]), 1)
    assert not is_no_tool(Record("r", [user, said], []), 1)
    assert not is_no_tool(Record("r", [user, {**said, "tool_calls": [1]}], [tool]), 1)
    assert not is_no_tool(Record("r", [user, {**said, "tool_calls": [1]}, result, said], [tool]), 3)
    assert is_no_tool(Record("r", [user, {**said, "tool_calls": [1]}, result, said, user, said], [tool]), 5)


def test_a_round_is_sampled_at_once_and_given_out_step_by_step(source, tokenizer):
    made = stream(source, tokenizer)
    steps = []
    for left in (5, 4, 3, 2, 1):
        steps.append(made.look(left))
        assert made.look(left) is steps[-1]  # looking twice samples nothing
        made.advance()
    assert [[answer.ids[1] for answer in step] for step in steps] == [[1] * 4] * 3 + [[2] * 4] * 2  # 3 steps, then 2
    assert all([len(group) for group in list_groups(step)] == [2, 2] for step in steps)
    assert made.num_tokens == 40 and made.sampling_seconds > 0
    lengths = [length for batch in made._sampler.batches[:4] for length in batch]
    assert lengths == sorted(lengths, reverse=True) and len(made._sampler.batches[0]) == 3


def test_resumed_in_the_middle_of_a_round_it_gives_the_same(source, tokenizer):
    whole, begun = stream(source, tokenizer), stream(source, tokenizer)
    expected = []
    for left in range(6, 0, -1):
        expected.append(whole.look(left))
        whole.advance()
    for left in (6, 5):
        begun.look(left)
        begun.advance()
    resumed = stream(source, tokenizer, state=begun.state_dict())
    found = []
    for left in (4, 3, 2, 1):
        found.append(resumed.look(left))
        resumed.advance()
    assert found[0] == expected[2]  # kept, not sampled again
    same = [answer._replace(ids=answer.ids[:1]) for step in found for answer in step]
    assert same == [answer._replace(ids=answer.ids[:1]) for step in expected[2:] for answer in step]


def test_seeds_of_draws_differ():
    assert len({draw_seed(seed, number, sample) for seed in "ab" for number in range(9) for sample in range(9)}) == 162


@pytest.mark.parametrize(
    ("answers", "micro", "parts", "records"), [(6, 4, 3, 6), (3, 2, 4, 5), (8, 2, 4, 0), (5, 2, 4, 5)]
)
def test_shares_of_a_step(answers, micro, parts, records):
    bounds = [share_out(answers, micro, parts, records)(part) for part in range(parts)]
    assert bounds[0][0] == 0 and bounds[-1][1] == answers
    assert all(one[1] == other[0] for one, other in zip(bounds, bounds[1:]))
    if answers + records == micro * parts:  # beside its records every micro-batch is full
        held = [records * (part + 1) // parts - records * part // parts for part in range(parts)]
        assert [end - first + num for (first, end), num in zip(bounds, held)] == [micro] * parts


def test_guards():
    rollouts = Rollouts(reward=1.0, samples=2, repair=1.0)
    well = [
        make_answer([1, 2], value, number=at // 2, log_probs=[-1.0, -1.0]) for at, value in enumerate((0, 1, 0.5, 0))
    ]
    figures = measure(well, rollouts)
    assert figures["answer_entropy"] == 1 and figures["no_signal"] == 0 and figures["reward_mean"] == 0.375
    assert not check(figures | {"impossible": 3.0}, Guards())
    assert "called_needlessly" not in figures and figures["corrected"] == figures["corrected_record"] == 0
    fixed = Correction(0, [1], [1], "schema")
    needless = [well[0]._replace(no_tool=True, bits=[1, 1 | TOOL]), well[1]._replace(no_tool=True, correction=fixed)]
    figures = measure([*needless, *well[2:]], rollouts)
    assert figures["called_needlessly"] == 0.5 and figures["corrected"] == figures["corrected_schema"] == 0.25
    bad = [one._replace(finished=False, repeats_from=1, hacked=True, value=0.0, log_probs=[0.0, 0.0]) for one in well]
    names = ["unfinished", "entropy", "repeated", "no_signal", "hacked", "impossible"]
    guards = Guards(**{name: Guard(limit=0.5 if name != "entropy" else 0.1, action="skip") for name in names})
    found = check(measure(bad, rollouts) | {"impossible": 30.0}, guards)
    assert [one.name for one in found] == names and {one.action for one in found} == {"skip"}
    assert found[0].sentence.startswith("unfinished is 1, above guards.unfinished.limit (0.5): answers are cut")
    assert not check(measure(bad, rollouts), Guards(**dict.fromkeys(names)))
