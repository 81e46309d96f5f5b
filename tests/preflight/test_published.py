"""Plans without a network: published sizes, and the recipes that people start from."""

from __future__ import annotations

import pytest

from helpers.jobs import REPOSITORY
from kd.models.load import count_parameters
from kd.preflight.published import NAMES, published_config
from launch import plan as plan_command

# As the models' own pages and files give them.
PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
}
RECIPES = {
    "cpu_0.4b_from_0.6b": ("0.38 B", "0.60 B", "--host-memory", "16"),
    "gpu24_0.6b_from_4b": ("0.60 B", "4.02 B", "--gpu-memory", "24", "--host-memory", "64"),
    "gpu80_1.7b_from_8b": ("1.72 B", "8.19 B", "--gpu-memory", "80", "--host-memory", "200"),
    "gpus8_8b_from_32b": ("8.19 B", "32.76 B", "--world-size", "8", "--gpu-memory", "80", "--host-memory", "1000"),
}


def test_a_published_model_has_its_parameters():
    assert PARAMETERS.keys() == set(NAMES) and published_config("org/another") is None
    for name, expected in PARAMETERS.items():
        found = published_config(name)
        assert found is not None and count_parameters(found) == expected, name


def test_every_recipe_is_tried():
    assert {path.stem for path in (REPOSITORY / "configs" / "recipes").glob("*.yaml")} == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_machine_that_it_names(name, capsys, monkeypatch):
    student, teacher, *options = RECIPES[name]
    file = REPOSITORY / "configs" / "recipes" / f"{name}.yaml"
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    said = file.read_text()
    assert " ".join(options) in " ".join(said.split())  # the command in its head
    assert plan_command.main(["--config", str(file), *options]) == 0
    plan = capsys.readouterr().out
    assert f"student   {student} parameters" in plan and f"teacher   {teacher} parameters" in plan
    assert "the published sizes are used" in plan and "no problem found" in plan
    # The weights alone leave no room in a tenth of that.
    memory = options.index("--gpu-memory" if "--gpu-memory" in options else "--host-memory") + 1
    options[memory] = str(float(options[memory]) / 10)
    assert plan_command.main(["--config", str(file), *options]) == 1
    assert f"{'each GPU' if 'gpu' in options[memory - 1] else 'each host'} needs" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["0", "-1", "nan", "1e9"])
def test_a_memory_that_no_machine_has_is_refused(size, capsys):
    with pytest.raises(SystemExit) as caught:
        plan_command.parse(["--config", "a.yaml", f"--gpu-memory={size}"])
    assert caught.value.code == 2 and "GiB above 0 are needed" in capsys.readouterr().err
