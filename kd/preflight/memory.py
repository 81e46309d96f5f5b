"""Bytes and floating-point operations of a run, by formula: estimates from above, by item.

Model states: ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3): weights, gradients, and for Adam the fp32 master
and two moments. Activations: the tensors that autograd keeps in a transformers Llama layer, counted as in Korthikanti
et al. (arXiv 2205.05198, section 4) for RMSNorm, GQA, SwiGLU and an attention kernel that keeps no score matrix.
Operations: 6 a parameter and token plus attention (Kaplan et al., arXiv 2001.08361, section 2.1; Chowdhery et al.,
arXiv 2204.02311, appendix B), halved for causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from kd.config.schema import Lora
from kd.models.load import read_size

WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4, "auto": 2}
_SUB_GROUP = 1_000_000_000  # parameters whose fp32 gradients exist at once in DeepSpeed's optimizer step
_GPU_CHUNK_ROWS = 4096  # the most rows kernels.linear takes by default
_CPU_CHUNK_BYTES = 64 << 20
_MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size")  # by family


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that the formulas need."""

    parameters: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    attention_width: int  # num_attention_heads * head_dim
    kv_width: int  # num_key_value_heads * head_dim
    num_heads: int
    vocab_size: int
    tied: bool

    @staticmethod
    def of(model_config: PreTrainedConfig, parameters: int) -> Shape:
        """Read the sizes of a model of `parameters` parameters off its transformers configuration."""
        text = model_config.get_text_config()
        hidden_size = read_size(text, "hidden_size", "dim", "d_model") or 1
        num_heads = read_size(text, "num_attention_heads", "num_heads") or 1  # a recurrent model has none
        head_dim = read_size(text, "head_dim") or hidden_size // num_heads
        return Shape(
            parameters=parameters,
            hidden_size=hidden_size,
            intermediate_size=read_size(text, *_MLP_WIDTHS) or 4 * hidden_size,
            num_layers=read_size(text, "num_hidden_layers") or 1,
            attention_width=num_heads * head_dim,
            kv_width=(read_size(text, "num_key_value_heads") or num_heads) * head_dim,
            num_heads=num_heads,
            vocab_size=text.vocab_size,
            tied=bool(getattr(text, "tie_word_embeddings", False)),
        )

    @property
    def matrix_parameters(self) -> int:
        """Parameters by which a token is multiplied: all but an embedding that is only looked up."""
        return self.parameters - (0 if self.tied else self.vocab_size * self.hidden_size)


@dataclass(frozen=True)
class Job:
    """Job of one rank: all that its memory depends on; variants of a job answer `what if`."""

    student: Shape
    teacher: Shape | None
    world_size: int
    student_dtype: str
    teacher_dtype: str
    teacher_sharded: bool
    ds_config: dict
    micro_batch_size: int
    max_length: int
    gradient_checkpointing: bool
    eager_attention: bool
    chunk_rows: int | None
    on_cpu: bool
    teacher_offloaded: bool = False  # its weights in host memory
    packing_mask: bool = False  # packed records, kept apart by a mask (kd/models/hidden_states.py)
    sampled_together: int = 0  # answers of the student, on a whole copy of it; 0 without rollouts
    corrections: int = 0  # sequences of a micro-batch beyond micro_batch_size: answers that are trained corrected too
    adapters: int | None = None  # parameters of adapters, which alone are trained
    is_capture: bool = False  # the teacher runs alone, and `student` has its sizes

    @property
    def zero(self) -> dict:
        """ZeRO section of the DeepSpeed JSON."""
        return self.ds_config.get("zero_optimization", {})

    def offloads(self, what: str) -> bool:
        """Check that `optimizer` or `param` states leave the device."""
        return (self.zero.get(f"offload_{what}") or {}).get("device", "none") != "none"


def estimate_memory(job: Job) -> tuple[dict[str, int], dict[str, int]]:
    """Estimate one rank's memory, each by item: (bytes on the device, bytes in host memory).

    Ranks on the CPU have everything on `the device`. Items that are never alive together count at their peak: the
    teacher's forward ends before the student's begins, and activations are gone when the optimizer steps.
    """
    if job.is_capture and job.teacher is not None:
        return _estimate_alone(job, job.teacher)
    device, host = _student_states(job)
    work = _student_work(job)
    work["teacher activations beyond the student's"] = max(0, _teacher_working(job) - work["student activations"])
    scratch = 4 * min(_share(job, 1), _SUB_GROUP)
    if job.offloads("optimizer"):
        host["fp32 gradients of the optimizer step"] = scratch
    else:
        work["fp32 gradients of the optimizer step, beyond backward"] = max(0, scratch - sum(work.values()))
    device.update(work)
    if job.teacher is not None:
        (host if job.teacher_offloaded and not job.on_cpu else device)["teacher weights"] = count_teacher_weights(job)
        device.update(_teacher_work(job.teacher, job))
    return {name: size for name, size in device.items() if size}, {name: size for name, size in host.items() if size}


def _estimate_alone(job: Job, teacher: Shape) -> tuple[dict[str, int], dict[str, int]]:
    weights, work = {"teacher weights": count_teacher_weights(job)}, _teacher_work(teacher, job)
    work["teacher activations"] = _teacher_working(job)
    # Draws are taken from fp64 probabilities beside the logits (kd/teacher/live.py).
    work["logits of one chunk"] = _chunk_rows(job) * (WIDTH[job.teacher_dtype] + 8) * teacher.vocab_size
    work = {name: size for name, size in work.items() if size}
    return (work, weights) if job.teacher_offloaded and not job.on_cpu else ({**weights, **work}, {})


def count_adapters(student: Shape, lora: Lora) -> int:
    """Count the parameters of a student's low-rank adapters; names that are not a Llama layer's are not counted."""
    hidden, mlp = student.hidden_size, student.intermediate_size
    sides = {"q_proj": hidden + student.attention_width, "o_proj": hidden + student.attention_width}
    sides |= dict.fromkeys(("k_proj", "v_proj"), hidden + student.kv_width)
    sides |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), hidden + mlp)
    adapted = sides if lora.target_modules is None else [name.rpartition(".")[2] for name in lora.target_modules]
    return lora.rank * student.num_layers * sum(sides.get(name, 0) for name in adapted)


def _share(job: Job, from_stage: int, *, trained: bool = True) -> int:
    """Count the parameters whose state one rank holds, split from this ZeRO stage on; of those that are trained."""
    own = job.student.parameters
    count = own if job.adapters is None else job.adapters if trained else own + job.adapters
    return -(-count // job.world_size) if job.zero.get("stage", 0) >= from_stage else count


def _student_states(job: Job) -> tuple[dict[str, int], dict[str, int]]:
    width = WIDTH[job.student_dtype]
    accumulation = job.ds_config.get("data_types", {}).get("grad_accum_dtype") or job.student_dtype
    weights = _share(job, 3, trained=False) * width
    gradients, optimizer = _share(job, 2) * WIDTH[accumulation], _share(job, 1) * 12
    device, host = {}, {}
    (host if job.offloads("param") else device)["student weights"] = weights
    (host if job.offloads("optimizer") else device)["student gradients"] = gradients
    (host if job.offloads("optimizer") else device)["fp32 master and Adam moments"] = optimizer
    return device, host


def _student_work(job: Job) -> dict[str, int]:
    student, width = job.student, WIDTH[job.student_dtype]
    tokens = (job.micro_batch_size + job.corrections) * job.max_length
    sharded = job.zero.get("stage", 0) == 3
    live = min(student.parameters, int(job.zero.get("stage3_max_live_parameters", 1e9))) if sharded else 0
    buckets = 2 if job.zero.get("overlap_comm") else 1
    layer = _layer_bytes(job)
    mask = max(width, WIDTH[job.teacher_dtype] if job.teacher else 0) + 1  # and the booleans it is made from
    kept = (
        2 * student.hidden_size * student.num_layers + layer
        if job.gradient_checkpointing
        else layer * student.num_layers
    )
    return {
        "gathered student weights": live * width,
        "gradient reduction buckets": buckets * int(job.zero.get("reduce_bucket_size", 5e8)) * width,
        "student activations": tokens * kept * width // 2,
        "mask of packed records": tokens * job.max_length * mask if job.packing_mask else 0,
        # dW of the head is summed in fp32 during forward, then cast
        "gradient of the student's head": 0
        if job.adapters is not None
        else student.vocab_size * student.hidden_size * (4 + width) * (1 + _samples(job)),
        "whole copy of the student": student.parameters * width * _samples(job),
        "key/value cache of sampled answers": job.sampled_together
        * job.max_length
        * 2
        * student.num_layers
        * student.kv_width
        * width,
        "logits of one chunk": _chunk_rows(job)
        * width
        * (student.vocab_size + (job.teacher.vocab_size if job.teacher else 0)),
    }


def _samples(job: Job) -> int:
    """Return 1 where the student samples answers, whose loss is a second one beside the records', else 0."""
    return int(job.sampled_together > 0)


def _layer_bytes(job: Job) -> int:
    """Count the bytes a token that backward of one layer needs, in bf16.

    They are two RMSNorms (fp32 input and normalised value, output), two residual sums, queries, keys and values before
    and after rotation, the attention's output, and four MLP tensors.
    """
    s = job.student
    elements = (
        2 * s.hidden_size + 2 * (s.attention_width + 2 * s.kv_width) + s.attention_width + 4 * s.intermediate_size
    )
    # eager attention keeps the fp32 softmax, its bf16 copy and dropout's input
    scores = 8 * s.num_heads * job.max_length if job.eager_attention else 0
    return 2 * elements + 2 * 10 * s.hidden_size + scores


def _chunk_rows(job: Job) -> int:
    limit = job.chunk_rows or (
        max(16, _CPU_CHUNK_BYTES // (4 * job.student.vocab_size)) if job.on_cpu else _GPU_CHUNK_ROWS
    )
    return min(limit, job.micro_batch_size * job.max_length)


def _teacher_working(job: Job) -> int:
    """Count the bytes of the teacher's layer at work, as no other is alive without autograd.

    They are its input and output, residual and norm, and the MLP's widest three.
    """
    if job.teacher is None:
        return 0
    widths = 4 * job.teacher.hidden_size + 3 * job.teacher.intermediate_size
    return job.micro_batch_size * job.max_length * WIDTH[job.teacher_dtype] * widths


def count_teacher_weights(job: Job) -> int:
    """Count the bytes of the teacher's weights on one rank; 0 without a teacher."""
    if job.teacher is None:
        return 0
    return -(-job.teacher.parameters // (job.world_size if job.teacher_sharded else 1)) * WIDTH[job.teacher_dtype]


def _teacher_work(teacher: Shape, job: Job) -> dict[str, int]:
    """Count the bytes that the teacher takes on the device besides its weights, by item."""
    width = WIDTH[job.teacher_dtype]
    live = min(teacher.parameters, int(job.zero.get("stage3_max_live_parameters", 1e9)))
    return {
        "teacher head, whole": teacher.vocab_size * teacher.hidden_size * width if job.teacher_sharded else 0,
        "gathered teacher weights": live * width if job.teacher_sharded else 0,
        "teacher hidden states": job.micro_batch_size * job.max_length * teacher.hidden_size * width,
    }


def fewest_parameters(model_config: PreTrainedConfig) -> int:
    """Count the matrices that a decoder of these sizes has at least, by arithmetic: one embedding, one MLP a layer."""
    shape = Shape.of(model_config, 0)
    attention = 2 * shape.hidden_size * (shape.attention_width + shape.kv_width)
    mlp = 2 * shape.hidden_size * shape.intermediate_size
    return shape.vocab_size * shape.hidden_size + shape.num_layers * (attention + mlp)


def count_flops(student: Shape, teacher: Shape | None, length: float, gradient_checkpointing: bool) -> float:
    """Count the operations a token of sequences of `length` tokens.

    Forward and backward of the student take 6 a parameter, 8 when recomputed; forward of the teacher takes 2. Causal
    attention adds 2 x layers x width x length to a forward.
    """
    passes = 4 if gradient_checkpointing else 3
    total = passes * (2 * student.matrix_parameters + 2 * student.num_layers * student.attention_width * length)
    if teacher is not None:
        total += 2 * teacher.matrix_parameters + 2 * teacher.num_layers * teacher.attention_width * length
    return total
