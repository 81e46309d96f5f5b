"""Additions from outside the package: each is one file of examples/extensions/ and one registration, and is used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from helpers.config_cases import GOOD, changed
from helpers.jobs import REPOSITORY, plain_environment
from helpers.template_cases import with_template
from kd.checkpoints.store import Checkpoints, find_resumable
from kd.config.load import load_config
from kd.config.problems import ConfigError
from kd.config.registries import CHECKPOINT_FORMATS, FORMATS, TEACHER_SOURCES
from kd.distributed.ranks import Ranks
from kd.evaluation.files import format_table
from kd.evaluation.metrics import METRICS, summarise
from kd.records.record import parse_record
from kd.rendering.call_syntax import find_syntax
from kd.rendering.spans import ARGS, TOOL, find_spans
from kd.rendering.turns import render
from kd.rewards.reward import REWARDS
from kd.teacher.open import open_teacher
from kd.teacher.source import OpenTeacher
from kd.toolcalls.reader import HERMES
from kd.toolcalls.syntax.registry import SYNTAXES
from kernels import RowWeights, distill_loss
from kernels.divergences import unregister_divergence

EXAMPLES = REPOSITORY / "examples/extensions"
ADDITIONS = {
    "total_variation": lambda: unregister_divergence("total_variation"),
    "lisp_calls": lambda: SYNTAXES.unregister("lisp"),
    "dialogue_format": lambda: FORMATS.unregister("dialogue"),
    "uniform_teacher": lambda: TEACHER_SOURCES.unregister("uniform"),
    "argument_reward": lambda: REWARDS.unregister("right_arguments"),
    "brevity_metric": lambda: METRICS.unregister("brevity"),
    "split_checkpoint": lambda: CHECKPOINT_FORMATS.unregister("split"),
}

RECORD = {
    "id": "r",
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}],
    "messages": [
        {"role": "user", "content": "How warm is it in Lorvik?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Lorvik", "days": 2}}}
            ],
        },
    ],
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(text, module): the configuration `text` with run.extensions: [module]; what it registers goes afterwards."""
    monkeypatch.syspath_prepend(EXAMPLES)
    path, loaded = tmp_path / "run.yaml", []

    def load(module: str, text: str = GOOD):
        path.write_text(text)
        loaded.append(module)
        return load_config(path, [f"run.extensions=[{module}]"])

    yield load
    for module in loaded:
        if sys.modules.pop(module, None):
            ADDITIONS[module]()


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ADDITIONS)


def test_a_name_without_its_extension_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(changed("w_tool: 0.2", "divergence: total_variation"))
    with pytest.raises(ConfigError, match="must be one of 'forward_kl', 'reverse_kl' or 'jsd'"):
        load_config(path)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_divergence(load, impl):
    config = load("total_variation", changed("w_tool: 0.2", "divergence: total_variation"))
    student, teacher = torch.randn(5, 11, dtype=torch.float64, requires_grad=True), torch.randn(5, 11).double()
    out = distill_loss(
        student,
        teacher,
        torch.zeros(5, dtype=torch.int64),
        RowWeights(kd=torch.full((5,), 0.2)),
        divergence=config.loss.divergence,
        impl=impl,
    )
    expected = 0.5 * (teacher.softmax(-1) - student.softmax(-1)).abs().sum(-1)
    torch.testing.assert_close(out.divergence, expected.detach())
    out.loss.backward()
    (slope,) = torch.autograd.grad(expected.sum() * 0.2, student)
    torch.testing.assert_close(student.grad, slope)


def test_call_syntax(load, tokenizer):
    load("lisp_calls")
    lisp = with_template(
        tokenizer,
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}({{ c.function.name }}"
        "{% for k, v in c.function.arguments.items() %} :{{ k }} {{ v | tojson }}{% endfor %}){% endfor %}</s>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        "<s>",
        "</s>",
    )
    record = parse_record(RECORD, "here")
    text, turns = render(record, lisp)
    spans = {span.bit: text[span.start : span.end] for span in find_spans(record, text, turns)}
    assert spans[TOOL] == "get_weather" and spans[ARGS] == ':city "Lorvik" :days 2'
    parsed = find_syntax(lisp).parse('Sure. (get_weather :city "Lorvik" :days 2) (get_weather :city')
    assert parsed.calls == [{"name": "get_weather", "arguments": {"city": "Lorvik", "days": 2}}]
    assert len(parsed.problems) == 1 and parsed.text_outside == "Sure."


def test_record_format(load):
    text = changed("train: [a.jsonl]", "train: [{files: a.jsonl, format: dialogue}]")
    config = load("dialogue_format", text)
    assert config.data.stages[0].train[0].format == "dialogue"
    call = {"name": "get_weather", "arguments": {"city": "Lorvik"}}
    data = {"dialogue": [["user", "Warm?"], ["call", call], ["result", "21"], ["bot", "21 degrees."]]}
    for format in ("dialogue", None):  # by name, and by what its fields show
        record = parse_record(data, "here", format)
        assert [message["role"] for message in record.messages] == ["user", "assistant", "tool", "assistant"]
        assert record.messages[1]["tool_calls"][0]["function"] == call


def test_teacher_source(load, teacher_folder):
    text = changed("  path: some/teacher", f"  path: {teacher_folder}\n  source: uniform")
    config = load("uniform_teacher", text)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    device = torch.device("cpu")
    teacher = open_teacher(OpenTeacher.for_run(config, {}, tokenizer, device, pytest.fail, []))
    micro = SimpleNamespace(rows=torch.arange(4))
    targets = teacher.targets(micro, teacher.temperature(2.0))
    logits = targets.hidden @ targets.head.weight.T
    assert logits.shape == (4, len(tokenizer)) and not logits.any()
    teacher.close()


def test_reward(load):
    load("argument_reward")
    record = parse_record(RECORD, "here")
    for answered, value in (({"city": "Lorvik", "days": 2}, 1.0), ({"city": "Lorvik", "days": 3}, 0.5), ({}, 0.0)):
        text = f"<tool_call>{json.dumps({'name': 'get_weather', 'arguments': answered})}</tool_call>"
        assert REWARDS["right_arguments"](record, 1, text, HERMES.parse(text)).value == value


def test_metric(load):
    load("brevity_metric")
    case = {"kind": "no_tool", "record": 0, "outcome": {"over_called": False}, "finished": True, "num_tokens": 3}
    metrics = summarise([{**case, "output": "No."}, {**case, "output": "No. " * 100}])
    assert metrics["brevity"] == 0.5
    assert "brevity" in format_table({"student": {"split": metrics}})


def test_checkpoint_format(load, tmp_path):
    config = load("split_checkpoint", changed("  steps: 100", "  steps: 100\n  checkpoint_format: split"))

    class Engine:  # as kd.training.engine.StudentEngine, over a DeepSpeed engine that saves one number
        weight, global_rank = 1.0, 0

        def save_checkpoint(self, folder, tag, save_latest):
            torch.save(self.weight, f"{folder}/{tag}.pt")

        def load_checkpoint(self, folder, tag, load_lr_scheduler_states):
            self.weight = torch.load(f"{folder}/{tag}.pt")

        def save(self, folder, state, written_as):
            written_as.save(self, folder, state)

        def load(self, folder, written_as):
            return written_as.load(self, folder)

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        engine = Engine()
        folder, format = tmp_path / "run", config.training.checkpoint_format
        Checkpoints(folder, engine, Ranks(), {}, format=format).save(3, {"step": 3})
        assert (folder / "step-00000003/state-0.pt").exists()
        engine.weight = 2.0
        found = find_resumable(folder, {}, 1, pytest.fail)
        assert Checkpoints(folder, engine, Ranks(), {}, resume=found).load() == {"step": 3} and engine.weight == 1.0
    finally:
        torch.distributed.destroy_process_group()


RUN = """\
run: {{name: all, output_dir: {out}, extensions: [{extensions}]}}
teacher: {{path: {teacher}, dtype: fp32, source: uniform}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4,
          num_key_value_heads: 2, head_dim: 8, dtype: fp32}}
data:
  stages: [{{name: one, train: [{{files: {out}/records.jsonl, format: dialogue}}], max_length: 512}}]
  evaluation: {{mine: {out}/records.jsonl}}
  workers: 1
loss: {{divergence: total_variation, temperature: {{start: 2.0}}}}
training: {{steps: 2, save_every: 1, micro_batch_size: 2, log_every: 1, deepspeed: ds_configs/zero3_cpu.json,
           checkpoint_format: split}}
evaluation: {{num_records: 2, max_new_tokens: 8, baselines: false}}
"""


def test_a_run_with_all_of_them(tmp_path, teacher_folder):
    """One command trains, with a worker process, on the dialogue format, from the uniform teacher, and evaluates."""
    call = {"name": "get_weather", "arguments": {"city": "Lorvik"}}
    functions = [{"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]
    lines = [
        {"id": f"r{i}", "dialogue": [["user", f"Warm, {i}?"], ["call", call], ["result", "21"]], "functions": functions}
        for i in range(8)
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.yaml").write_text(
        RUN.format(out=tmp_path, teacher=teacher_folder, extensions=", ".join(ADDITIONS))
    )
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--config", tmp_path / "run.yaml"],
        cwd=REPOSITORY,
        env=plain_environment(PYTHONPATH=str(EXAMPLES)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    logged = [json.loads(line) for line in (tmp_path / "all/metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["kd"] > 0
    assert (tmp_path / "all/checkpoints/step-00000002/state-0.pt").exists()
    evaluation = json.loads((tmp_path / "all/evaluation.json").read_text())
    assert "brevity" in evaluation["student"]["mine"]


def test_what_is_taken_back_is_no_choice_any_more(load):
    load("brevity_metric")
    assert "brevity" in METRICS
    METRICS.unregister("brevity")
    sys.modules.pop("brevity_metric")
    importlib.import_module("brevity_metric")  # and may be registered again
    assert "brevity" in METRICS
