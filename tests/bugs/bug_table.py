"""Table of the silent bugs found in this field: how each is put back into this tree, and the tests that must fail then.

A bug is silent where nothing stops: a number is printed, a model is exported, and it is worse than it should be.
"""

from __future__ import annotations

from typing import NamedTuple

LOSS, GRADIENTS = "tests/objective/test_loss.py", "tests/distributed/test_gradients.py"
EVERY_TERM = f"{LOSS}::test_every_reported_term_is_the_one_that_is_differentiated"
OF_FUSED = "tests/kernels/test_definition.py::test_named_terms_are_what_is_optimised"
EVERY_SPLIT = f"{GRADIENTS}::test_every_split_has_the_gradient_and_the_terms_of_the_plain_loss"


class Bug(NamedTuple):
    """One bug.

    Attributes:
        number: its place in the list of 18.
        name: what goes wrong.
        file: where it is put in.
        edits: text that stands there once, and what takes its place.
        tests: of which at least one fails.
    """

    number: int
    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


BUGS = (
    Bug(
        1,
        "the gradient of cross-entropy is dropped, and the loss shows it",
        "kernels/reference.py",
        (
            (
                "    if q is not None:\n        total = q.mul_",
                "    if q is not None and parts.kd is None:\n        total = q.mul_",
            ),
        ),
        (EVERY_TERM,),
    ),
    Bug(
        1,
        "the gradient of cross-entropy is dropped, and the loss shows it, in the fused kernels",
        "kernels/fused/rows.py",
        (("temperature * scale, (truth + span) * scale, hard", "temperature * scale, 0.0 * scale, hard"),),
        (OF_FUSED,),
    ),
    Bug(
        2,
        "T^2 is in the loss, and not in the gradient",
        "kernels/reference.py",
        (("(used.kd * options.temperature * scale)", "(used.kd / options.temperature * scale)"),),
        (EVERY_TERM,),
    ),
    Bug(
        2,
        "T^2 is in the loss, and not in the gradient, of the fused kernels",
        "kernels/fused/rows.py",
        (("return outputs, kd * temperature * scale", "return outputs, kd / temperature * scale"),),
        (OF_FUSED,),
    ),
    Bug(
        3,
        "soft cross-entropy is called a KL divergence",
        "kernels/reference.py",
        (
            (
                "            kd = _Kd(log_q_t, gradient)",
                "            divergence = divergence - (p * log_p).sum(-1)\n            kd = _Kd(log_q_t, gradient)",
            ),
        ),
        (EVERY_TERM,),
    ),
    Bug(
        4,
        "terms are means over a micro-batch, not over the optimizer step",
        "kd/objective/loss.py",
        (
            (
                "        factor = scale * divisor / count if count > 0 else 0.0\n",
                "        count = float(weight[(bits & bit) != 0].sum())\n"
                "        factor = scale * divisor / count if count > 0 else 0.0\n",
            ),
        ),
        (EVERY_SPLIT,),
    ),
    Bug(
        5,
        "weights of spans are accepted and ignored",
        "kd/objective/loss.py",
        (("[s for s in (tool, args, integration) if s is not None]", "[]"),),
        (f"{LOSS}::test_row_weights_sum_to_the_terms_weights_over_the_whole_step",),
    ),
    Bug(
        6,
        "the mask is off by one against the logits",
        "kd/batching/fit.py",
        (("np.flatnonzero(bits[1:])", "np.flatnonzero(bits[:-1])"),),
        ("tests/rendering/test_spans.py::test_a_row_is_the_position_before_its_token",),
    ),
    Bug(
        7,
        "spans are found in the prompt",
        "kd/rendering/spans.py",
        (
            (
                "_locate_structured(text, start, end, functions, content, where)\n            if",
                "_locate_structured(text, 0, end, functions, content, where)\n            if",
            ),
        ),
        ("tests/test_silent_bugs.py::test_7_a_call_quoted_in_the_prompt_is_not_the_call",),
    ),
    Bug(
        8,
        "a loss is a constant that asks for a gradient",
        "kd/objective/loss.py",
        (
            (
                "RowWeights(span=mask / mask.sum().clamp(min=1)), impl=impl).loss",
                "RowWeights(span=mask / mask.sum().clamp(min=1)), impl=impl).loss.detach().requires_grad_()",
            ),
        ),
        (f"{LOSS}::test_a_span_loss_is_the_mean_cross_entropy_of_its_rows_with_gradient",),
    ),
    Bug(
        9,
        "the cache is read by step, not by record",
        "kd/teacher/cache/lookup.py",
        (
            (
                "        at = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)\n"
                "        absent = np.flatnonzero(self._pairs[at] != wanted)",
                "        at = np.arange(len(wanted)) % len(self._pairs)\n        absent = np.arange(0)",
            ),
        ),
        ("tests/teacher/cache/test_cache.py::test_content_is_the_address",),
    ),
    Bug(
        10,
        "columns beyond the tokenizer are given probability",
        "kd/objective/student_loss.py",
        (('"vocab_size": vocab_size}', '"vocab_size": None}'),),
        (EVERY_SPLIT,),
    ),
    Bug(
        11,
        "a schedule does not reach the loss",
        "kd/training/trainer.py",
        (("weights_at(self._config.loss, step, ", "weights_at(self._config.loss, 0, "),),
        (f"{GRADIENTS}::test_schedules_reach_student_teacher_and_both_ranks",),
    ),
    Bug(
        12,
        "the head is taken while it is partitioned, and has no rows",
        "kd/objective/student_loss.py",
        (
            ("        self.model = model\n", "        self.model = model\n        self._head = head_of(model)\n"),
            ("        head = head_of(self.model)\n", "        head = self._head\n"),
        ),
        (EVERY_SPLIT,),
    ),
    Bug(
        13,
        "text is tokenized in pieces, and has other ids",
        "kd/rendering/tokens.py",
        (
            (
                "    if special is None:\n        return _plain(text, tokenizer)",
                "    if text:\n        half = len(text) // 2\n"
                "        (a, at_a), (b, at_b) = _plain(text[:half], tokenizer), _plain(text[half:], tokenizer)\n"
                "        return a + b, at_a + [(i + half, j + half) for i, j in at_b]",
            ),
        ),
        ("tests/test_silent_bugs.py::test_13_the_ids_are_those_of_the_whole_text_tokenized_once",),
    ),
    Bug(
        14,
        "a salted hash is an identity",
        "kd/batching/record_key.py",
        (
            (
                "return hashlib.blake2b(_int32(input_ids), digest_size=KEY_BYTES).digest()",
                'return hash(str(list(input_ids))).to_bytes(KEY_BYTES, "little", signed=True)',
            ),
        ),
        ("tests/batching/test_record_key.py",),
    ),
    Bug(
        15,
        "an option imports what is not there",
        "kd/teacher/open.py",
        (
            (
                "    return TEACHER_SOURCES",
                "    from kd.teacher.remote import ask  # noqa: F401\n\n    return TEACHER_SOURCES",
            ),
        ),
        ("tests/test_silent_bugs.py::test_15_every_import_written_in_kd_and_launch_resolves",),
    ),
    Bug(
        16,
        "bytes of a token are those of a smaller vocabulary",
        "kd/teacher/cache/spec.py",
        (
            (
                "return max((self.vocab_size - 1).bit_length(), 1)",
                "return min(max((self.vocab_size - 1).bit_length(), 1), 16)",
            ),
        ),
        ("tests/teacher/cache/test_codec.py::test_sizes_of_numbers",),
    ),
    Bug(
        17,
        "a span without rows is NaN",
        "kd/objective/loss.py",
        (("if count > 0 else 0.0", 'if count > 0 else float("nan")'),),
        (f"{LOSS}::test_a_term_that_weighs_nothing_is_off_and_one_without_rows_is_zero",),
    ),
    Bug(
        17,
        "a batch without rows is a zero outside of the graph",
        "kernels/linear.py",
        (("    if any(wanted):\n        pairs", "    if any(wanted) and len(hidden):\n        pairs"),),
        (f"{LOSS}::test_no_rows_at_all_is_a_zero_that_reaches_the_head",),
    ),
    Bug(
        18,
        "the student is called around its engine",
        "kd/training/engine.py",
        (("return self._engine(micro,", "return self._engine.module(micro,"),),
        (EVERY_SPLIT,),
    ),
)
