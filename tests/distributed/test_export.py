"""The exported student: a plain folder with the weights that training ended with, whole, whatever they were split
over.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.parametrize(
    ("name", "dtype"), [("split", torch.float32), ("split_tied", torch.float32), ("nan_bf16", torch.bfloat16)]
)
def test_the_folder_holds_the_last_weights_and_loads_anywhere(runs, tokenizer, name, dtype):
    run, folder = runs(2, name), runs.folder / "world2" / f"{name}_student"
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded = dict(model.named_parameters())
    assert loaded.keys() == run["weights"][-1].keys()
    for parameter, value in run["weights"][-1].items():
        assert loaded[parameter].dtype == dtype and torch.equal(loaded[parameter], value), parameter
    assert model.config.use_cache and model.config.tie_word_embeddings == (name == "split_tied")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (name != "split_tied")  # noqa: SIM118 (not a dict)


def test_tokenizer_and_template_are_in_it_and_nothing_is_left_beside_it(runs, tokenizer):
    folder = runs.folder / "world2" / "split_student"
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.get_vocab() == tokenizer.get_vocab() and saved.chat_template == tokenizer.chat_template
    assert json.loads((folder / "config.json").read_text())["num_key_value_heads"] == 2
    assert not [path.name for path in folder.parent.iterdir() if path.suffix in (".tmp", ".old")]
