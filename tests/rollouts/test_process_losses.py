"""Losses of sampled answers as functions: their gradients are those of the expected reward, and of a correction."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.caws_cases import DAY, write_project
from kd.records.caws.context import extract_caws_context
from kd.records.record import Record
from kd.rewards.reward import RewardError
from kd.rollouts.process_losses import (
    caws_compliance_loss,
    caws_structure_loss,
    json_repair_loss,
    json_validity_loss_from_ids,
    reward_loss_from_ids,
    tool_selection_loss_from_ids,
)
from kd.rollouts.sampler import find_stop_ids


def make_tool(name):
    parameters = {"type": "object", "properties": {"path": {"type": "string"}, "content": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def write(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


CALL = {"id": "1", "type": "function", "function": {"name": "list_all", "arguments": {}}}
RIGHT, WRONG, BROKEN = write("list_all"), write("file.write"), '<tool_call>{"name": "list_all", </tool_call>'
INSIDE, OUTSIDE = (
    write("file.write", path="src/refunds/a.py", content="x"),
    write("file.write", path="b.py", content="x"),
)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    caws = extract_caws_context(write_project(tmp_path_factory.mktemp("caws")), "PAY-001", date=DAY)
    asked = {"role": "user", "content": "List all"}
    tools = [make_tool("list_all"), make_tool("file.write")]
    return Record("r", [asked, {"role": "assistant", "content": "", "tool_calls": [CALL]}], tools, caws=caws)


@pytest.fixture
def take(tokenizer, record):
    """take(loss, texts, stops=True): the loss, its gradient a row, and the sum of log-probabilities of each answer
    before and after a step against that gradient.
    """

    def take(loss_of, texts, stops=True):
        stop = find_stop_ids(None, tokenizer)[:1] * stops
        answers = [tokenizer(text, add_special_tokens=False)["input_ids"] + stop for text in texts]
        ids = torch.tensor([token for answer in answers for token in answer])
        logits = torch.randn(len(ids), len(tokenizer), generator=torch.Generator().manual_seed(3)).requires_grad_()
        loss = loss_of(logits, answers, record, 1, tokenizer)
        (gradient,) = torch.autograd.grad(loss, logits)

        def score(at):
            rows = at.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
            return torch.stack([part.sum() for part in rows.split([len(answer) for answer in answers])])

        return loss.item(), gradient, score(logits.detach()), score(logits.detach() - 0.1 * gradient)

    return take


@pytest.mark.parametrize(
    ("loss_of", "better", "worse", "rewards"),
    [
        (json_validity_loss_from_ids, WRONG, BROKEN, (1, 0)),
        (tool_selection_loss_from_ids, RIGHT, WRONG, (1, 0)),
        (caws_compliance_loss, INSIDE, OUTSIDE, (1, 0)),
    ],
)
def test_the_better_answer_becomes_likelier_and_the_worse_less(take, loss_of, better, worse, rewards):
    loss, gradient, before, after = take(loss_of, [better, worse])
    assert after[0] > before[0] and after[1] < before[1]
    apart = rewards[0] - rewards[1]  # each answer's reward less the other's
    assert loss == pytest.approx(-(apart * before[0] - apart * before[1]).item() / 2, rel=1e-5)
    assert gradient.sum(-1).abs().max() < 1e-5  # of a softmax


def test_speaking_of_the_spec_is_rewarded(take):
    said = "PAY-001: A refund is never paid twice. A1: it is tried again at most 3 times."
    _, _, before, after = take(caws_structure_loss, [said, "ok"])
    assert after[0] > before[0] and after[1] < before[1]


@pytest.mark.parametrize("texts", [[RIGHT], [RIGHT, RIGHT], [BROKEN, BROKEN, BROKEN]])
def test_one_answer_and_equal_rewards_have_no_gradient(take, texts):
    loss, gradient, *_ = take(json_validity_loss_from_ids, texts)
    assert loss == 0 and not gradient.any()


def test_an_answer_that_was_cut_has_no_reward(take):
    loss, gradient, *_ = take(tool_selection_loss_from_ids, [RIGHT, WRONG], stops=False)
    assert loss == 0 and not gradient.any()


def test_a_correction_is_learned():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ids = torch.tensor([3, 39, 0, 7, 7])
    loss = json_repair_loss(logits, ids)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, ids).item(), rel=1e-6)
    (found,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, ids), logits)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    nothing = json_repair_loss(logits[:0], ids[:0])
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, logits)[0].any()


def test_wrong_use_is_told(tokenizer, record):
    with pytest.raises(ValueError, match="3 rows of logits for answers of 2 tokens"):
        json_validity_loss_from_ids(torch.zeros(3, 600), [[1], [2]], record, 1, tokenizer)
    with pytest.raises(RewardError, match="no reward 'kindness'"):
        reward_loss_from_ids(torch.zeros(2, 600), [[1], [2]], record, 1, tokenizer, "kindness")
