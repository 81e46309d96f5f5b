"""Several records in a row: filled well, the same order everywhere, and none of them sees another."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from transformers import modeling_flash_attention_utils as flash

from helpers.packing_cases import assert_no_leak, model, records
from kd.batching.fit import FitPolicy
from kd.batching.micro_batch import collate, collate_packed
from kd.batching.order import best_fit
from kd.batching.steps import PackingPolicy, StepBatches, StepShape, measure
from kd.models.hidden_states import UnpackableModel, check_packable, hidden_rows
from kd.rendering.encode import Encoded, encode
from kd.rendering.spans import TOOL, TRUTH
from kd.sources.demo import corpus as demo
from kd.sources.demo.source import DemoSource

FAMILIES = ["llama", "qwen3", "gpt2", "qwen3 with windows", "mistral with windows"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_of_a_record_reaches_another(family, attention):
    assert_no_leak(model(family, attention))


def _varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale=None, **_):
    """What flash_attn_varlen_func computes, a sequence at a time: q [N, heads, D], k and v [N, kv heads, D]."""
    assert causal and torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q.dtype == torch.int32
    starts = cu_seqlens_q.tolist()
    assert (
        starts[0] == 0
        and starts[-1] == len(q)
        and max(b - a for a, b in zip(starts, starts[1:])) == max_seqlen_q == max_seqlen_k
    )
    out = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[a:b].transpose(0, 1) for x in (q, k, v)), is_causal=True, scale=softmax_scale, enable_gqa=True
        ).transpose(0, 1)
        for a, b in zip(starts, starts[1:])
    ]
    return torch.cat(out)


def _dense(q, k, v, *, causal, softmax_scale):
    """What flash_attn_func computes, of one sequence: q [1, T, heads, D]."""
    starts = torch.tensor([0, q.shape[1]], dtype=torch.int32)
    return _varlen(
        q[0],
        k[0],
        v[0],
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=q.shape[1],
        max_seqlen_k=q.shape[1],
        causal=causal,
        softmax_scale=softmax_scale,
    )[None]


def _arguments(is_causal, softmax_scale, max_seqlen_q=None, max_seqlen_k=None, **_):
    lengths = {} if max_seqlen_q is None else {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
    return {"causal": is_causal, "softmax_scale": softmax_scale, **lengths}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flash_attention_gets_where_each_record_begins(family, monkeypatch):
    """The kernel replaced by its definition; tests/gpu/test_packing_gpu.py has the kernel itself."""
    found = model(family, "eager")
    found.config._attn_implementation = "flash_attention_2"
    lazy = (_dense, _varlen, None, None, None), (_arguments, None)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: lazy)
    assert_no_leak(found)


def test_a_step_keeps_one_mask_for_all_layers():
    found, rows, kept = model("llama", "sdpa").train(), records(), set()

    def keep(tensor):
        if tensor.shape[-2:] == (16, 16):
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_rows(found, collate_packed(rows, 0, 16)).sum().backward()
    assert len(kept) == 1


def test_a_model_that_carries_a_state_is_refused():
    found = model("llama")
    check_packable(found)
    found.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(
        UnpackableModel, match="llama model has layers .linear_attention. that carry .* use packing: none"
    ):
        check_packable(found)


def test_collate_packed_by_hand():
    """Records of 3 and 2 tokens in one row, one of 4 in the next: rows never cross from one record into another."""
    a, b = Encoded("a", [5, 6, 7], [TRUTH, 0, TRUTH], 0.5), Encoded("b", [8, 9], [TRUTH, TRUTH | TOOL], 1.0)
    c = Encoded("c", [1, 2, 3, 4], [TRUTH, TRUTH, 0, TRUTH], 2.0)
    micro = collate_packed([[a, b], [c]], 0, 6)
    assert micro.input_ids.tolist() == [[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 0, 0]]
    assert micro.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    assert micro.packed.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    assert micro.packed.cu_seq_lens.tolist() == [0, 3, 5, 6, 10, 12] and micro.packed.max_length == 4
    assert micro.rows.tolist() == [1, 3, 6, 8] and micro.labels.tolist() == [7, 9, 2, 4]
    assert (
        micro.record.tolist() == [0, 1, 2, 2]
        and micro.record_ids == ("a", "b", "c")
        and micro.weight.tolist() == [0.5, 1.0, 2.0, 2.0]
    )
    empty = collate_packed([], 0, 6)
    assert (
        empty.input_ids.shape == (1, 1)
        and empty.packed.cu_seq_lens.tolist() == [0, 1]
        and empty.packed.position_ids.tolist() == [[0]]
    )


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80))
def test_rows_hold_every_record_once_and_no_two_of_them_fit_in_one(lengths):
    rows = best_fit(range(len(lengths)), lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = sorted(sum(lengths[i] for i in row) for row in rows)
    assert used[-1] <= 50 and (len(used) < 2 or used[0] + used[1] > 50)


def packed(tokenizer, source, number, *, world=1, micro=1, accumulation=1, max_length=900, **options):
    policy = FitPolicy(max_length)
    shares = [measure(source, tokenizer, policy, rank=r, world_size=world) for r in range(world)]
    lengths = sum(share.lengths for share in shares).tolist()
    return [
        list(
            islice(
                StepBatches(
                    source,
                    tokenizer,
                    policy,
                    StepShape(micro, accumulation, r, world),
                    packing=PackingPolicy(lengths, shares[r].kept),
                    **options,
                ),
                number,
            )
        )
        for r in range(world)
    ]


def names(ranks, flat=True):
    return [
        name for of_ranks in zip(*ranks) for micros in zip(*of_ranks) for micro in micros for name in micro.record_ids
    ]


def test_the_order_of_packed_records_is_the_same_at_every_world_size_and_batch(tokenizer):
    source = DemoSource(60, 1, {"single": 1.0, "chat": 1.0, "echo_short": 1.0})
    whole = names(packed(tokenizer, source, 60, seed=4))
    assert len(whole) > 120 and sorted(whole[:60]) == sorted(source[i].id for i in range(60)) != sorted(whole[30:90])
    for world, micro, accumulation in [(1, 2, 3), (2, 1, 1), (2, 2, 2), (4, 1, 1), (4, 2, 1)]:
        found = names(
            packed(
                tokenizer,
                source,
                40 // (world * micro * accumulation),
                world=world,
                micro=micro,
                accumulation=accumulation,
                seed=4,
            )
        )
        assert len(found) > 60 and found == whole[: len(found)]
    assert names(packed(tokenizer, source, 60, seed=5)) != whole


def test_rows_are_nearly_full(tokenizer):
    source = DemoSource(200, 1, {"single": 1.0, "chat": 1.0, "multi": 1.0})
    (made,) = packed(tokenizer, source, 14, micro=4, max_length=1024)
    micros = [micro for step in made for micro in step]
    assert sum(int(m.attention_mask.sum()) for m in micros) > 0.95 * sum(m.input_ids.numel() for m in micros)


def test_records_that_are_too_long_are_named_once(tokenizer):
    source = DemoSource(12, 1, {"single": 1.0, "chat": 1.0})
    lengths = {source[i].id: len(encode(source[i], tokenizer).input_ids) for i in range(12)}
    limit = sorted(lengths.values())[7]
    ranks = packed(tokenizer, source, 30, world=2, max_length=limit)
    left_out = [name for made in ranks for step in made for micro in step for name in micro.too_long]
    assert sorted(left_out) == sorted(name for name, n in lengths.items() if n > limit) and set(
        names(ranks)
    ) == lengths.keys() - set(left_out)


def test_packed_rows_train_what_padded_rows_do(tokenizer):
    chosen = [encode(demo.record(kind, 3), tokenizer) for kind in ("single", "chat", "multi")]
    apart, together = collate(chosen, 0), collate_packed([chosen[:2], chosen[2:]], 0)
    for name in ("labels", "bits", "weight", "record", "record_ids"):
        one, other = getattr(apart, name), getattr(together, name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert torch.equal(apart.input_ids.flatten()[apart.rows], together.input_ids.flatten()[together.rows])
