"""Training steps that benchmarks/peers.py compares. A process makes the models and the data, then each method has one.

    python benchmarks/peer_methods.py METHOD FOLDER        # FOLDER/job.json says the rest; writes FOLDER/METHOD.json

spanwise_live, spanwise_sampled, spanwise_ce   this trainer's engine: live teacher, cached draws, cross-entropy alone
trl_gkd, trl_distillation                      TRL's trainers, with their own loops
eager, ce                                      plain transformers: whole logits and torch's kl_div; the model's own loss
teacher_forward                                the teacher alone, to logits of the supervised rows

All divergences are forward KL at temperature 1 over the same rows; AdamW (kd/training/optimizer.py) is the same for
all, and so are clipping and number of threads. On a GPU the student has fp32 weights under autocast, in ours those are
DeepSpeed's, and the teacher is in bf16; on a CPU all is fp32.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.peer_job import IGNORED, OPTIMIZER, Job, Recorder  # noqa: E402
from kd.batching.micro_batch import count_rows  # noqa: E402
from kd.config.schema import Loss, Student, Teacher, Training  # noqa: E402
from kd.objective.terms import TERMS, TermWeights  # noqa: E402
from kd.training.optimizer import build_optimizer  # noqa: E402

# hidden size, layers, MLP width, heads, key/value heads, head size: of the student, of the teacher. "gpu" has the
# shapes of Qwen3 0.6B and 4B.
SIZES = {
    "tiny": ((32, 1, 64, 2, 1, 16), (48, 1, 96, 3, 1, 16)),
    "small": ((256, 2, 1024, 4, 2, 64), (512, 4, 2048, 8, 4, 64)),
    "gpu": ((1024, 28, 3072, 16, 8, 128), (2560, 36, 9728, 32, 8, 128)),
}
NUM_DRAWS = 50
_SPREAD = 1.1  # of the teacher's logits, by sqrt(2 ln V): its rows' entropy is then 2 to 3 nats, a language model's


def prepare(job: Job) -> dict:
    """Make student, teacher and tokens at random, and capture the draws; return the draws' figures."""
    torch.manual_seed(0)
    for which, shape in zip(("student", "teacher"), SIZES[job.size]):
        names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        sizes: dict[str, Any] = dict(zip((*names, "head_dim"), shape)) | {"vocab_size": job.vocab}
        config = transformers.Qwen3Config(
            **sizes, max_position_embeddings=job.length, tie_word_embeddings=which == "student", eos_token_id=1
        )
        with job.device:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if which == "teacher":
            spread = _SPREAD * math.sqrt(2 * math.log(job.vocab))
            torch.nn.init.normal_(model.lm_head.weight, std=spread / math.sqrt(config.hidden_size))
            model.to(torch.bfloat16 if job.dtype == "bf16" else torch.float32)
        model.save_pretrained(Path(job.folder) / which)
        del model
    ids = torch.randint(2, job.vocab, (job.warmup + job.steps, job.batch, job.length))
    torch.save(ids, Path(job.folder) / "ids.pt")
    return _capture(job)


@torch.no_grad()
def _capture(job: Job) -> dict:
    from kd.teacher.cache.check_rows import slice_rows
    from kd.teacher.cache.spec import CacheSpec, Entry
    from kd.teacher.cache.writer import CacheWriter
    from kd.teacher.live import LiveRows, SparseOptions

    spec = CacheSpec("sampled", job.vocab, (1.0,), num_draws=NUM_DRAWS)
    source = LiveRows(_our_teacher(job), SparseOptions("sampled", None, NUM_DRAWS, job.vocab, 0), (1.0,), job.device)
    entries, rows, distinct, entropy = [], job.length - job.prompt, [], []
    for micro in job.micro_batches():
        found: Any = source.target_rows(micro)
        found = found._replace(**{k: v.cpu() for k, v in found._asdict().items() if isinstance(v, Tensor)})
        distinct.append((found.counts > 0).sum(-1).double().mean().item())
        entropy.append(found.entropy_t.double().mean().item())
        for i, (key, digest) in enumerate(zip(micro.keys, micro.row_digests)):
            entries.append(Entry(key, digest, slice_rows(found, i * rows, (i + 1) * rows)))
    writer = CacheWriter(Path(job.folder) / "cache", spec, {"teacher": "random"})
    writer.write_shard(0, entries)
    writer.finish(1)
    mean = statistics.mean
    return {"draws": NUM_DRAWS, "distinct": round(mean(distinct), 2), "entropy_nats": round(mean(entropy), 3)}


def _our_teacher(job: Job) -> Any:
    from kd.distributed.start import start_distributed
    from kd.teacher.model import TeacherModel

    start_distributed()
    torch.set_num_threads(job.threads)
    teacher = Teacher(path=str(Path(job.folder) / "teacher"), dtype=job.dtype, placement="replicated")
    return TeacherModel(teacher, {}, job.device, packed=False)


def spanwise(job: Job, recorder: Recorder, kind: str) -> None:
    """Take our engine's steps as kd/training/trainer.py does: teacher live, draws read ahead, or none."""
    from kd.config.deepspeed.fill import resolve_ds_config
    from kd.distributed.start import start_distributed
    from kd.models.student import build_student
    from kd.teacher.cache.reader import CacheReader
    from kd.teacher.cached import CacheTeacher
    from kd.teacher.live import LiveTeacher
    from kd.training.engine import StudentEngine

    start_distributed()
    torch.set_num_threads(job.threads)
    recorder.hold()
    training = Training(steps=job.warmup + job.steps, micro_batch_size=job.batch, deepspeed=job.deepspeed)
    student = Student(init="checkpoint", path=str(Path(job.folder) / "student"), dtype=job.dtype)
    settings = resolve_ds_config(training, OPTIMIZER, student)
    model = build_student(
        student,
        None,
        work_dir=job.folder,
        seed=0,
        max_length=job.length,
        ds_config=settings,
        tokenizer_length=job.vocab,
    )
    engine = StudentEngine(model, Loss(divergence="forward_kl"), OPTIMIZER, settings, job.vocab)
    source: Any = None
    if kind == "live":
        source = LiveTeacher(_our_teacher(job))
    elif kind == "sampled":
        source = CacheTeacher(CacheReader(Path(job.folder) / "cache"), 0.0, job.device)
    if source is not None:
        recorder.watch(source, "targets", "teacher")
    inner: Any = engine._engine
    for owner, name, part in ((engine, "_forward", "forward"), (inner, "backward", "backward")):
        recorder.watch(owner, name, part)
    recorder.watch(inner, "step", "optimizer")
    taught = float(source is not None)
    terms = TermWeights(1.0, kd=taught, hard=0, truth=1 - taught, tool=0, args=0, integration=0)
    batches = job.micro_batches()
    for number, micro in enumerate(batches):
        recorder.begin()
        if source is not None and number + 1 < len(batches):
            source.prefetch([batches[number + 1]], 1.0)
        report = engine.train_step([micro], count_rows([micro]), terms, source, number)
        recorder.end(report.sums[: len(TERMS)].sum().item())
    if source is not None:
        source.close()


def plain(job: Job, recorder: Recorder, taught: bool) -> None:
    """Take the steps of a plain loop over transformers' models: its own cross-entropy, or torch's kl_div on whole
    logits in fp32.
    """
    recorder.hold()
    student, teacher = job.load("student"), job.load("teacher") if taught else None
    optimizer = build_optimizer(student, OPTIMIZER, {})

    def compute_loss(ids: Tensor, labels: Tensor) -> Tensor:
        if teacher is None:
            return student(input_ids=ids, labels=labels).loss
        with recorder.part("teacher"), torch.no_grad():
            target = teacher(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        found = student(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        rows = torch.nn.functional.kl_div(found, target, reduction="none", log_target=True).sum(-1)
        return rows[labels[:, 1:] != IGNORED].mean()

    for ids in job.ids().to(job.device):
        labels = job.labels(ids)
        recorder.begin()
        with recorder.part("forward"), job.autocast():
            loss = compute_loss(ids, labels)
        with recorder.part("backward"):
            loss.backward()
        with recorder.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(student.parameters(), OPTIMIZER.clip)
            optimizer.step()
            optimizer.zero_grad()
        recorder.end(loss.item())


def teacher_forward(job: Job, recorder: Recorder) -> None:
    """The teacher alone, and no more logits of it than there are supervised rows."""
    recorder.hold()
    teacher = job.load("teacher")
    for ids in job.ids().to(job.device):
        recorder.begin()
        with recorder.part("teacher"), torch.no_grad():
            hidden = teacher.base_model(input_ids=ids).last_hidden_state
            teacher.lm_head(hidden[:, job.prompt - 1 : -1])
        recorder.end(0.0)


def trl(job: Job, recorder: Recorder, kind: str) -> None:
    """Let TRL's trainer train on the given records, in its own loop, on our optimizer.

    DistillationTrainer is for answers that the student samples; the method that samples them is replaced by one that
    gives the records, and nothing else of it.
    """
    import datasets
    import tokenizers

    settings: dict[str, Any] = {
        "output_dir": str(Path(job.folder) / kind),
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": 1,
        "max_steps": job.warmup + job.steps,
        "max_grad_norm": OPTIMIZER.clip,
        "gradient_checkpointing": False,
        "bf16": job.dtype == "bf16",
        "use_cpu": job.device.type == "cpu",
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device.type == "cuda",
        "remove_unused_columns": False,
        "beta": 0.0,
        "temperature": 1.0,
    }
    if kind == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer  # pyright: ignore[reportMissingImports]

        base: Any = GKDTrainer
        config: Any = GKDConfig(**settings, lmbda=0.0, max_length=job.length)
    else:
        from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

        base, config = DistillationTrainer, DistillationConfig(**settings)

    class Given(base):
        """The trainer over records in order, all of their tokens given."""

        def _get_train_sampler(self, *unused):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _generate_and_score_completions(self, inputs):
            ids = collate(inputs)["input_ids"].to(job.device)
            prompt, completion = ids[:, : job.prompt], ids[:, job.prompt :]
            return {
                "prompt_ids": prompt,
                "prompt_mask": torch.ones_like(prompt),
                "completion_ids": completion,
                "completion_mask": torch.ones_like(completion),
                "num_items_in_batch": torch.tensor(float(completion.numel()), device=job.device),
            }

        def training_step(self, *args, **kwargs):
            self.last_loss = super().training_step(*args, **kwargs)
            return self.last_loss

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *unused, **named):
            recorder.begin()

        def on_step_end(self, *unused, **named):
            recorder.end(trainer.last_loss.item())

    def collate(records):
        ids = torch.tensor([record["input_ids"] for record in records])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": job.labels(ids)}

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    recorder.hold()
    student, teacher = job.load("student"), job.load("teacher")
    optimizer = build_optimizer(student, OPTIMIZER, {})
    records = [{"input_ids": row, "prompt": ""} for row in job.ids().flatten(0, 1).tolist()]
    trainer = Given(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=tokenizer,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[Clock()],
        **({"data_collator": collate} if kind == "gkd" else {}),
    )
    recorder.watch(trainer, "compute_loss", "forward")
    recorder.watch(teacher if kind == "gkd" else teacher.base_model, "forward", "teacher")
    recorder.watch(trainer.accelerator, "backward", "backward")
    optimizer.register_step_pre_hook(lambda *unused: recorder.part("optimizer").__enter__())
    optimizer.register_step_post_hook(lambda *unused: recorder.part("optimizer").__exit__())
    trainer.train()


METHODS: dict[str, Callable[[Job, Recorder], None]] = {
    "spanwise_live": functools.partial(spanwise, kind="live"),
    "spanwise_sampled": functools.partial(spanwise, kind="sampled"),
    "spanwise_ce": functools.partial(spanwise, kind="ce"),
    "trl_gkd": functools.partial(trl, kind="gkd"),
    "trl_distillation": functools.partial(trl, kind="distillation"),
    "eager": functools.partial(plain, taught=True),
    "ce": functools.partial(plain, taught=False),
    "teacher_forward": teacher_forward,
}


def main(method: str, folder: str) -> None:
    """Run one method, or `prepare`, in this process."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    job = Job(**json.loads((Path(folder) / "job.json").read_text()))
    torch.set_num_threads(job.threads)
    if method == "prepare":
        found = prepare(job)
    else:
        recorder = Recorder(job)
        METHODS[method](job, recorder)
        found = recorder.result()
    (Path(folder) / f"{method}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
