"""Folders of models that are not there: told at once, without asking the hub for what is plainly a path."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from kd.models.load import load_causal_lm, read_model_config
from kd.models.model_files import ModelNotFound, StudentError, find_folder
from kd.models.tokenizer import TokenizerError, read_tokenizer


@pytest.fixture
def online(monkeypatch):
    """A machine whose hub takes a connection and never answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("kd.models.model_files.HUB_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


@pytest.mark.parametrize("path", ["no/such/folder", "/no/such", "./nothing", "../nothing", "~nobody/model", "a//b"])
@pytest.mark.parametrize("read", [read_model_config, read_tokenizer])
def test_a_path_that_is_not_there_asks_no_hub(online, monkeypatch, path, read):
    monkeypatch.setattr("kd.models.model_files.get_session", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(
        (ModelNotFound, TokenizerError),
        match=r"teacher.path: '.*': no such folder is here, and the hub was not asked, as this is a path",
    ):
        read(path, key="teacher.path")


def test_a_misspelt_folder_beside_others_is_a_path_and_the_nearest_is_named(online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "demo_teacher").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match="was not asked, .*; did you mean 'configs/demo_teacher'"):
        find_folder("configs/demo_techer")


def test_a_hub_that_does_not_answer_is_told_in_seconds(online):
    started = time.monotonic()
    with pytest.raises(
        ModelNotFound, match=r"'org/model': no such folder is here, .* the hub \(http.* does not answer"
    ):
        find_folder("org/model")
    assert time.monotonic() - started < 5


def test_an_offline_machine_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match=r"the hub was not asked \(HF_HUB_OFFLINE is set\): give a folder"):
        find_folder("org/model")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFound, match="model.safetensors' is a file, and a model is a folder"):
        find_folder(tmp_path / "model.safetensors", key="student.path")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(ModelNotFound, match="link' is a link to gone, which is not there"):
        find_folder(tmp_path / "link")


def test_a_folder_without_rights_is_no_folder_without_files(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read all
    with pytest.raises(StudentError, match="teacher.path: .* cannot be read .Permission denied.: give this user the r"):
        read_model_config(tmp_path, key="teacher.path")


def test_flash_attention_without_its_package_is_named_before_a_weight_is_read(teacher_folder, monkeypatch):
    monkeypatch.setattr("kd.models.load.is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr("kd.models.load.check_weights", lambda folder: pytest.fail("weights were read"))
    with pytest.raises(
        StudentError, match="student.attention_implementation: flash_attention_2 needs .*set it to sdpa"
    ):
        load_causal_lm(teacher_folder, dtype="fp32", attention_implementation="flash_attention_2")
