"""From an answer in vLLM's form to the teacher's rows: equal to what the model itself gives, and refused where it is
not right.
"""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.endpoint_server import prompt_logprobs
from kd.endpoint.vllm import AnswerError, NoPromptLogprobs, Prompt, read_answer, read_texts, request_body
from kernels import Head, teacher_topk

VOCAB = 40
PROMPT = Prompt("r1", (3, 39, 7, 7, 0, 12), (1, 2, 4))


def answer_of(logits, k: int, token_ids=PROMPT.token_ids, echo: bool = True) -> dict:
    table = prompt_logprobs(list(token_ids), logits, k, lambda i: f"t{i}")
    choice = {"index": 0, "text": "", "prompt_logprobs": table} | (
        {"prompt_token_ids": list(token_ids)} if echo else {}
    )
    return json.loads(json.dumps({"choices": [choice]}))


def logits_of(scale: float = 2.0, width: int = VOCAB) -> torch.Tensor:
    return torch.randn(len(PROMPT.token_ids), width) * scale


def expected(logits, k: int, vocab: int = VOCAB):
    return teacher_topk(
        logits[list(PROMPT.positions)].double(),
        Head(torch.eye(logits.shape[1], dtype=torch.float64)),
        k,
        vocab_size=vocab,
    )


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("k", [1, 5, 39, 40])
def test_equals_the_models_own_top_k(k, echo):
    logits = logits_of()
    rows, wanted = read_answer(answer_of(logits, k, echo=echo), PROMPT, k, VOCAB), expected(logits, k)
    assert (
        torch.equal(rows.ids, wanted.ids) and torch.equal(rows.argmax, wanted.argmax) and rows.ids.dtype == torch.int32
    )
    assert torch.allclose(rows.log_probs.double(), wanted.log_probs, atol=1e-5)
    assert torch.equal(rows.log_probs_t, rows.log_probs[None]) and rows.temperatures == (1.0,)
    if k == VOCAB:
        assert rows.log_tail.isneginf().all()
    else:
        assert torch.allclose(
            rows.log_tail.double().exp(), wanted.log_tail.exp(), rtol=0, atol=1e-6
        )  # what fp32 tells of 1 - sum
    assert rows.entropy.isnan().all() and rows.entropy_t.isnan().all()
    assert [tuple(x.shape) for x in rows[:7]] == [(3, k), (3, k), (1, 3, k), (1, 3), (3,), (1, 3), (3,)]


def test_rows_are_those_that_predict_the_supervised_tokens():
    """Row p is the distribution of token p + 1: shifted by one, another token is the best."""
    logits = torch.full((6, VOCAB), -5.0)
    for t in range(6):
        logits[t, 10 + t] = 5.0
    assert read_answer(answer_of(logits, 3), PROMPT, 3, VOCAB).argmax.tolist() == [11, 12, 14]


def test_ties_go_to_the_lowest_id():
    logits = torch.zeros(6, VOCAB)
    rows = read_answer(answer_of(logits, VOCAB), PROMPT, VOCAB, VOCAB)
    assert rows.ids.tolist() == [list(range(VOCAB))] * 3 and (rows.argmax == 0).all()


def test_a_sent_token_outside_the_best_is_not_kept():
    logits = logits_of()
    logits[1, PROMPT.token_ids[2]] = -30.0
    answer = answer_of(logits, 4)
    assert len(answer["choices"][0]["prompt_logprobs"][2]) == 5
    assert torch.equal(read_answer(answer, PROMPT, 4, VOCAB).ids, expected(logits, 4).ids)


def test_a_tail_too_small_for_the_reported_sum_is_no_more_than_it_can_be():
    """At 20 nats below the best, 1 - sum is rounding: the tail is told by its most, (V - K) times the last
    probability.
    """
    logits = torch.full((6, VOCAB), 0.0)
    logits[:, 5], logits[:, 9] = 20.0, 2.0
    rows, wanted = read_answer(answer_of(logits, 3), PROMPT, 3, VOCAB), expected(logits, 3)
    assert (rows.log_tail >= wanted.log_tail - 1e-3).all() and (rows.log_tail <= math.log(2.0**-20) + 1e-5).all()
    assert rows.log_tail.isfinite().all()


def test_tokens_that_the_teacher_excludes():
    """-inf comes as -9999; where the last kept token has it, no other token can have anything."""
    logits = torch.full((6, VOCAB), -math.inf)
    logits[:, [3, 39, 7, 0, 12]] = torch.tensor([1.0, 2.0, 3.0, 0.0, -1.0])
    rows = read_answer(answer_of(logits, 8), PROMPT, 8, VOCAB)
    assert (
        rows.ids[0, :5].tolist() == [7, 39, 3, 0, 12]
        and rows.log_probs[:, 5:].isneginf().all()
        and rows.log_tail.isneginf().all()
    )
    assert (rows.ids.sort(-1).values.diff(dim=-1) > 0).all()


def test_padding_of_the_servers_head_is_left_out():
    """Columns past the vocabulary with little mass: the others are scaled to sum to 1, and an empty slot is no token
    twice.
    """
    logits = logits_of(6.0, width=VOCAB + 4)
    logits[:, VOCAB:] = logits[:, :VOCAB].amax(-1, keepdim=True) - 12.0
    k = VOCAB
    rows, wanted = read_answer(answer_of(logits, k), PROMPT, k, VOCAB), expected(logits, k)
    known = rows.log_probs.isfinite()
    assert not known.all() and (rows.ids < VOCAB).all() and (rows.ids.sort(-1).values.diff(dim=-1) > 0).all()
    assert torch.equal(rows.ids[known], wanted.ids[known]) and torch.allclose(
        rows.log_probs[known].double(), wanted.log_probs[known], atol=1e-4
    )
    missing = 1 - rows.log_probs.double().exp().sum(-1)
    assert torch.allclose(rows.log_tail[0].double().exp(), missing.clamp(min=2.0**-20), atol=1e-6)


def entry(choice: dict, t: int = 2) -> dict:
    return choice["prompt_logprobs"][t]


def first_of(choice: dict, t: int = 2) -> str:
    return next(iter(entry(choice, t)))


FAULTS = {
    "no completion": (lambda c: c.clear(), NoPromptLogprobs, "no prompt_logprobs: the server ignores"),
    "ignored option": (
        lambda c: c.update(prompt_logprobs=None),
        NoPromptLogprobs,
        "no prompt_logprobs: the server ignores",
    ),
    "shorter": (
        lambda c: c["prompt_logprobs"].pop(),
        AnswerError,
        "record r1: 6 tokens were sent and prompt_logprobs is a list of 5",
    ),
    "longer": (
        lambda c: c["prompt_logprobs"].append({}),
        AnswerError,
        "6 tokens were sent and prompt_logprobs is a list of 7",
    ),
    "text": (lambda c: c.update(prompt_logprobs="x"), AnswerError, "is no list"),
    "echo of another length": (
        lambda c: c["prompt_token_ids"].pop(),
        AnswerError,
        "6 tokens were sent and the server had 5",
    ),
    "echo of another token": (
        lambda c: c["prompt_token_ids"].__setitem__(2, 8),
        AnswerError,
        "record r1: position 2: token 7 was sent and the server had token 8",
    ),
    "another token": (
        lambda c: (entry(c).pop("7"), c.pop("prompt_token_ids")),
        AnswerError,
        "record r1: position 2: token 7 was sent and the answer is not about it, but about token",
    ),
    "another token at a row that is not trained": (
        lambda c: c["prompt_logprobs"].__setitem__(1, {"1": {"logprob": -1.0}}),
        AnswerError,
        "position 1: token 39 was sent and the answer is not about it, but about token 1",
    ),
    "null inside": (
        lambda c: c["prompt_logprobs"].__setitem__(3, None),
        AnswerError,
        "position 3: token 7 was sent and the answer is not about it",
    ),
    "fewer": (lambda c: [entry(c).pop(key) for key in list(entry(c))[2:4]], AnswerError, "position 2: "),
    "NaN": (
        lambda c: entry(c)[first_of(c)].update(logprob=math.nan),
        AnswerError,
        "position 2: the log-prob of token 7 is nan",
    ),
    "above 0": (
        lambda c: entry(c)[first_of(c)].update(logprob=0.5),
        AnswerError,
        "position 2: the log-prob of token 7 is 0.5",
    ),
    "null log-prob": (
        lambda c: entry(c)[first_of(c)].update(logprob=None),
        AnswerError,
        "position 2: an entry is not of the form",
    ),
    "text log-prob": (
        lambda c: entry(c)[first_of(c)].update(logprob="-1"),
        AnswerError,
        "position 2: an entry is not of the form",
    ),
    "no entry": (
        lambda c: entry(c).__setitem__(first_of(c), None),
        AnswerError,
        "position 2: an entry is not of the form",
    ),
    "text in place of ids": (
        lambda c: entry(c).__setitem__("hello", {"logprob": -1.0}),
        AnswerError,
        "position 2: an entry is not of the form",
    ),
    "an id twice": (lambda c: entry(c).__setitem__("07", {"logprob": -1.0}), AnswerError, "a token is there twice"),
    "an id below 0": (lambda c: entry(c).__setitem__("-1", {"logprob": -1.0}), AnswerError, "or an id is no token's"),
    "an id past the vocabulary": (
        lambda c: entry(c).__setitem__("40", {"logprob": -1.0}),
        AnswerError,
        "position 2: the server gives 0.368 to tokens such as 40, past the 40 of the run's tokenizer: it "
        "serves another",
    ),
    "sum above 1": (
        lambda c: [e.update(logprob=-1.0) for e in list(entry(c).values())[-4:]],
        AnswerError,
        "position 2: the probabilities sum to 1.",
    ),
    "the sent token's log-prob of another row": (
        lambda c: c["prompt_logprobs"].__setitem__(2, c["prompt_logprobs"][5] | {"7": {"logprob": -0.9}}),
        AnswerError,
        "position 2: token 7 has log-prob -0.9, more than the last of the 12 best, among which it is not: the others "
        "are another position's",
    ),
    "the sent token's rank of another row": (
        lambda c: entry(c)["7"].update(rank=1 if entry(c)["7"]["rank"] > 1 else 2),
        AnswerError,
        "of the tokens there are more likely: the others are another position's",
    ),
    "not the best": (
        lambda c: [e.update(logprob=-9.0) for e in entry(c).values()],
        AnswerError,
        "others cannot have the rest",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_right_is_refused_by_record_and_position(name):
    change, kind, message = FAULTS[name]
    logits = logits_of(1.0)
    answer = answer_of(logits, 12)
    read_answer(copy.deepcopy(answer), PROMPT, 12, VOCAB)
    change(answer["choices"][0])
    with pytest.raises(kind) as caught:
        read_answer(answer, PROMPT, 12, VOCAB)
    assert message in str(caught.value) and str(caught.value).startswith("record r1: ")


@pytest.mark.parametrize(
    "answer",
    [None, [], "x", {}, {"choices": []}, {"choices": None}, {"choices": [1]}, {"choices": [{}, {}]}, {"error": "no"}],
)
def test_what_is_no_completion(answer):
    with pytest.raises(AnswerError, match="no completion with one choice"):
        read_answer(answer, PROMPT, 4, VOCAB)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["7", "logprob", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(path=st.lists(st.integers(0, 5), min_size=1, max_size=4), value=VALUES)
def test_any_other_value_anywhere_is_read_or_refused(path, value):
    """Whatever stands in any place of the answer, nothing but AnswerError comes out."""
    torch.manual_seed(0)
    answer = answer_of(logits_of(1.0), 12)
    place = answer["choices"]
    for step in path[:-1]:
        keys = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
        if not keys or not isinstance(place[keys[step % len(keys)]], (dict, list)):
            break
        place = place[keys[step % len(keys)]]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if keys:
        place[keys[path[-1] % len(keys)]] = value
    try:
        rows = read_answer(answer, PROMPT, 12, VOCAB)
    except AnswerError:
        return
    assert not rows.log_probs.isnan().any() and not rows.log_tail.isnan().any()


def test_no_rows():
    rows = read_answer(answer_of(logits_of(), 4), PROMPT._replace(positions=()), 4, VOCAB)
    assert rows.ids.shape == (0, 4) and rows.log_tail.shape == (1, 0)


def test_texts_of_tokens_are_compared():
    answer = answer_of(logits_of(), 12)
    texts = read_texts(answer, PROMPT, lambda i: f" u{i}")
    assert len(texts) > 12 and texts == {i: (f"t{i}", f"u{i}") for i in texts}
    assert (
        read_texts(answer, PROMPT, lambda i: "\ufffd") == read_texts(answer, PROMPT, lambda i: "\n") == {}
    )  # a piece of a character says nothing
    for entry in answer["choices"][0]["prompt_logprobs"][2].values():
        del entry["decoded_token"]
    assert 0 < len(read_texts(answer, PROMPT, lambda i: f"u{i}")) < len(texts)


def test_the_request_switches_off_what_would_bend_the_distribution():
    body = request_body("m", (1, 2), 8)
    assert (
        body["prompt"] == [1, 2]
        and body["prompt_logprobs"] == 8
        and body["max_tokens"] == 1
        and body["stream"] is False
    )
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (
        1.0,
        1.0,
        -1,
        0.0,
        1.0,
    )
    assert body["presence_penalty"] == body["frequency_penalty"] == 0.0
