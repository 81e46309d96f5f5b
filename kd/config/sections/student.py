"""The student's architecture and the tokenizer of both models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kd.config.fields import Dtype, Place, Section, Text

MOST_LAYERS = 4096


class Tokenizer(Section):
    path: Place | None = None
    """Folder or hub id; by default the teacher's, or the checkpoint's the student starts from."""
    template_variables: dict[Text, bool | Text] | None = Field(default=None, examples=[{"enable_thinking": False}])
    """Variables of the chat template, by name: true, false or text. They become defaults of the template itself:
    records are rendered with them, and so is what is asked of the exported student."""


class Lora(Section):
    rank: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Width of the adapters (r), from 1 to 65,536, the width of the widest matrix; 8 to 64 are usual."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 32.0
    """An adapter's product is scaled by alpha / rank; above 0, at most 1e6, usually rank to 4 times rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of an adapter's input, in training; from 0 to less than 1."""
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)] | None = Field(
        default=None, examples=[["q_proj", "v_proj"]]
    )
    """Names of the matrices that are adapted, or the ends of them; by default every one but the embedding and the
    head."""


class Student(Section):
    init: Literal["scratch", "teacher_layers", "checkpoint"] = "scratch"
    """scratch: random weights; teacher_layers: some of the teacher's layers, with its embeddings, norm and head;
    checkpoint: path.
    """
    path: Place | None = None
    """Folder or hub id of the checkpoint (init: checkpoint only)."""
    layers: (
        Annotated[tuple[Annotated[int, Field(ge=0, lt=MOST_LAYERS)], ...], Field(min_length=1, max_length=MOST_LAYERS)]
        | None
    ) = None
    """Which of the teacher's layers to take, counted from 0, increasing (init: teacher_layers only). By default
    num_hidden_layers of them, evenly spaced, always the first and the last."""
    choose_layers: Literal["even", "influence"] = "even"
    """Choice of num_hidden_layers of the teacher's layers, where `layers` does not list them (init: teacher_layers
    only). even: evenly spaced; influence: those that change their input most on calibration_records."""
    calibration_records: Annotated[int, Field(ge=1, le=1_048_576)] = 128
    """Records of the first stage that the teacher is run on before a cut by influence, or of MLP neurons; from 1 to
    1,048,576, where 512 to 1,024 are usual for large teachers."""
    architecture: Literal["llama", "qwen3"] | None = None
    """llama, or qwen3 (llama with normalised queries and keys). This and the sizes below are required from scratch, and
    otherwise come from the source; where they are given with teacher_layers they must agree with the teacher."""
    hidden_size: Annotated[int, Field(ge=1, le=262_144)] | None = None
    """Width of the residual stream (d_model), from 1 to 262,144; the largest models have about 20,000."""
    intermediate_size: Annotated[int, Field(ge=1, le=4_194_304)] | None = None
    """Width of the SwiGLU MLP, from 1 to 4,194,304; usually 3 to 4 times hidden_size. With teacher_layers it may be
    less than the teacher's: the neurons that were most active on calibration_records stay."""
    num_hidden_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)] | None = None
    """Number of transformer layers, from 1 to 4,096; the largest models have about 130."""
    num_attention_heads: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Number of query heads, from 1 to 16,384; the largest models have about 130."""
    num_key_value_heads: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Number of key/value heads (GQA), from 1 to 16,384; must divide num_attention_heads; by default equal to it (from
    scratch) or the teacher's. Fewer than the teacher's: its heads are averaged in groups."""
    head_dim: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Width of one head, even, at most 16,384 (usual 64 to 256); by default hidden_size / num_attention_heads."""
    tie_word_embeddings: bool | None = None
    """One matrix for the embedding and the head; by default false from scratch, else the source's."""
    rope_theta: Annotated[float, Field(gt=0, le=1e12)] | None = None
    """Base of the rotary position encoding, above 0; 10000 by default from scratch, larger for long contexts, at most
    1e12, beyond which positions look alike in fp32."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=16_777_216)] | None = None
    """Longest sequence in tokens, from 1 to 16,777,216, which no model reaches; by default the longest stage's
    max_length from scratch."""
    rms_norm_eps: Annotated[float, Field(gt=0, le=1)] | None = None
    """Added to the mean square in RMSNorm, above 0, at most 1, the mean square of its output; 1e-6 by default from
    scratch."""
    vocab_size: Annotated[int, Field(ge=1, le=16_777_216)] | None = None
    """Width of the embedding and the head, padding included, from 1 to 16,777,216 (the widest have 262,144); by default
    the teacher's, else the tokenizer's."""
    attention_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 needs its package and bf16 or fp16."""
    lora: Lora | None = None
    """Train low-rank adapters on frozen weights (init: checkpoint or teacher_layers), through peft. What is exported is
    the plain model, merged."""
    gradient_checkpointing: bool = False
    """Recompute each layer in backward: about a third more time, and activations of one layer instead of all."""
    dtype: Dtype = "bf16"
    """Precision of forward and backward; the optimizer keeps fp32 masters of bf16 and fp16 weights. auto: bf16, but
    fp32 on a CPU that has no bf16 instructions (emulated, bf16 is tens of times slower than fp32 there)."""
