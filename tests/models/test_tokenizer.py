"""The run's tokenizer: where it comes from, and the refusal of a teacher that was trained with another."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from transformers import AutoTokenizer

from helpers.template_forms import FORMS, chat, make_tokenizer
from kd.config.load import load_config
from kd.config.schema import Student, Tokenizer
from kd.models.tokenizer import TokenizerError, first_difference
from kd.models.tokenizer import load_tokenizer as load_tokenizer_of
from kd.preflight.agreement import OwnTokenizer, check_templates
from kd.rendering.encode import encode_sequences
from kd.run import dry_run
from kd.sources.demo.corpus import build_tokenizer
from kd.teacher.cache.identity import template_hash


def load_tokenizer(config):
    return load_tokenizer_of(config.tokenizer, config.teacher, config.student)


@pytest.fixture
def configure(tmp_path):
    def configure(
        teacher=None,
        tokenizer=None,
        student="architecture: llama, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 1",
    ):
        lines = [
            "run: {name: t}",
            f"student: {{{student}}}",
            "data: {stages: [{name: a, train: [x], max_length: 9}]}",
            "training: {steps: 1, deepspeed: ds_configs/zero3_cpu.json}",
        ]
        lines += [f"teacher: {{path: {teacher}}}"] if teacher else []
        lines += [f"tokenizer: {{path: {tokenizer}}}"] if tokenizer else []
        (tmp_path / "c.yaml").write_text("\n".join(lines))
        return load_config(tmp_path / "c.yaml")

    return configure


@pytest.fixture
def edited(tokenizer_folder, tmp_path):
    """A copy of the tokenizer with its tokenizer.json changed by a function."""

    def edited(change, name="copy"):
        folder = shutil.copytree(tokenizer_folder, tmp_path / name)
        data = json.loads((folder / "tokenizer.json").read_text())
        change(data)
        (folder / "tokenizer.json").write_text(json.dumps(data))
        return folder

    return edited


def test_the_teachers_tokenizer_is_the_runs_unless_another_path_is_given(
    configure, teacher_folder, tokenizer_folder, tokenizer
):
    for config in (
        configure(teacher_folder),
        configure(teacher_folder, tokenizer_folder),
        configure(None, tokenizer_folder),
    ):
        assert load_tokenizer(config).get_vocab() == tokenizer.get_vocab()
    assert (
        load_tokenizer(configure(student=f"init: checkpoint, path: {teacher_folder}")).get_vocab()
        == tokenizer.get_vocab()
    )


def test_a_teacher_with_another_tokenizer_is_refused(configure, teacher_folder, tmp_path):
    build_tokenizer(tmp_path / "other", vocab_size=620, num_records=100, seed=5)
    with pytest.raises(
        TokenizerError, match=r"the teacher's tokenizer .* is not the run's .*: token .*leave tokenizer.path out"
    ):
        load_tokenizer(configure(teacher_folder, tmp_path / "other"))


def test_a_checkpoint_with_another_tokenizer_is_refused_and_one_without_is_not(configure, teacher_folder, tmp_path):
    other = shutil.copytree(teacher_folder, tmp_path / "model")
    student = f"init: checkpoint, path: {other}"
    assert load_tokenizer(configure(teacher_folder, student=student))
    build_tokenizer(other, vocab_size=620, num_records=100, seed=5)
    with pytest.raises(
        TokenizerError,
        match=r"tokenizer of the student's checkpoint .* is not the run's .*: token .* for the student's checkpoint",
    ):
        load_tokenizer(configure(teacher_folder, student=student))
    for file in other.glob("*token*"):
        file.unlink()
    assert load_tokenizer(configure(teacher_folder, student=student))


def test_a_teacher_narrower_than_the_tokenizer_is_refused(configure, teacher_folder, tmp_path):
    narrow = shutil.copytree(teacher_folder, tmp_path / "narrow")
    settings = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**settings, "vocab_size": 599}))
    with pytest.raises(TokenizerError, match="the teacher's vocabulary is 599 wide and the tokenizer has 600 tokens"):
        load_tokenizer(configure(narrow))


@pytest.mark.parametrize(
    ("key", "extra"),
    [
        ("teacher.top_k", "targets: topk, top_k: {}"),
        ("teacher.num_draws", "targets: sampled, num_draws: {}"),
        ("teacher.cache.top_k", "cache: {{path: c, kind: topk, top_k: {}, temperatures: [2.0]}}"),
    ],
)
def test_more_of_a_row_than_there_are_tokens_is_refused_before_anything_is_loaded(
    configure, teacher_folder, key, extra
):
    """By a dry run too; capture loads the tokenizer before it measures its plan."""
    load_tokenizer(configure(f"{teacher_folder}, {extra.format(600)}"))
    config = configure(f"{teacher_folder}, {extra.format(601)}")
    for load in (load_tokenizer, lambda config: dry_run(config, 1)):
        with pytest.raises(
            TokenizerError, match=f"{re.escape(key)}: 601 a row, and the tokenizer has 600 tokens: lower it"
        ):
            load(config)


def swap(data):
    vocab = data["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]


def extra(data):
    data["added_tokens"].append({**data["added_tokens"][0], "content": "<extra>", "id": 600})


def other_pieces(data):
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def fewer_merges(data):
    data["model"]["merges"] = data["model"]["merges"][:-5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            swap,
            r"token '.*' is 598 for the teacher and "
            r"599 here",
        ),
        (extra, "'<extra>' .600. is unknown to the teacher"),
        (other_pieces, "same vocabulary, but another pre-tokenizer"),
        (fewer_merges, "same vocabulary, but another model"),
    ],
)
def test_the_difference_is_named(edited, tokenizer, change, said):
    other = AutoTokenizer.from_pretrained(edited(change))
    assert first_difference(tokenizer, tokenizer) is None
    assert re.search(said, first_difference(tokenizer, other))


def test_another_chat_template_is_no_other_tokenizer(configure, teacher_folder, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert load_tokenizer(configure(teacher_folder, folder)).chat_template == "{{ messages }}"


def test_what_cannot_serve_is_refused_with_the_remedy(configure, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TokenizerError, match="no chat template"):
        load_tokenizer(configure(None, folder))
    with pytest.raises(TokenizerError, match="nowhere': no such folder is here"):
        load_tokenizer(configure(None, tmp_path / "nowhere"))


def test_a_setting_that_only_encoding_reads_is_refused_with_the_folder(configure, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": "long"}))
    with pytest.raises(TokenizerError, match=r"/t: no tokenizer can be loaded from it \(TypeError"):
        load_tokenizer(configure(None, folder))


@pytest.mark.parametrize("template", [5, [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]])
def test_templates_of_which_none_is_the_default_are_refused_by_name(configure, tokenizer_folder, tmp_path, template):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    with pytest.raises(
        TokenizerError, match=r"none called default: save the one that is meant as chat_template\.jinja"
    ):
        load_tokenizer(configure(None, folder))


def test_a_template_that_ends_turns_in_plain_text_is_refused(configure, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/end]{% endfor %}"
    )
    with pytest.raises(TokenizerError, match="ends an assistant's turn in plain text.*end turns in a token"):
        load_tokenizer(configure(None, folder))


def test_variables_of_the_template_are_defaults_of_the_template_itself(tmp_path):
    """They are in its hash, in what is exported, and over those that a template was given before."""
    saved = make_tokenizer(FORMS["block by a variable"])
    saved.save_pretrained(tmp_path / "tokenizer")
    section = Tokenizer(path=str(tmp_path / "tokenizer"))
    plain, off, on = (
        load_tokenizer_of(section.model_copy(update={"template_variables": variables}), None, Student())
        for variables in (None, {"enable_thinking": False}, {"enable_thinking": True, "city": "Os'lo"})
    )
    assert plain.chat_template == saved.chat_template and len(set(map(template_hash, (plain, off, on)))) == 3
    (found,) = encode_sequences(chat("Hi", "Hello"), off)
    assert off.decode(found.input_ids).count("<think>") == 0
    off.save_pretrained(tmp_path / "student")
    section = Tokenizer(path=str(tmp_path / "student"), template_variables={"enable_thinking": True})
    again = load_tokenizer_of(section, None, Student())
    messages = [{"role": "user", "content": "Hi"}]
    asked = again.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<think>\n") and again.chat_template.count("enable_thinking is not defined %}{%") == 1
    kept = off.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert kept == asked  # who asks for thinking gets it
    assert check_templates([OwnTokenizer("the teacher", "t", saved)], on) == "one template"
