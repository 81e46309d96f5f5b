"""What a stopped run may go on with: its own configuration and the cache that it was trained from, wherever that
lies.
"""

from __future__ import annotations

import json

import pytest
import torch.distributed as dist

from helpers.cache_cases import CUTS, IDENTITY, SAMPLED, three_shards, write
from kd.checkpoints.identity import CACHE, difference, run_identity
from kd.checkpoints.store import MANIFEST, CheckpointError, Checkpoints, find_resumable, list_checkpoints
from kd.config.load import load_config
from kd.distributed.ranks import Ranks
from kd.teacher.cache.manifest import content_of
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import Missing

CONFIG = """\
run: {{name: r, output_dir: {out}}}
teacher:
  path: teachers/large
  cache: {{path: {out}/cache, kind: topk, top_k: 9}}
  endpoint: {{url: "http://one:8000/v1", model: large}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4}}
data: {{demo: {{num_records: 40}}, stages: [{{name: a, mix: {{echo: 1}}, max_length: 512}}]}}
loss: {{temperature: {{start: 1.0}}}}
training: {{steps: 4}}
"""
LATER = Missing(b"\1" * 16, "r9", "status 503")


class Engine:
    """Stands for the student's: it saves and loads nothing but the state."""

    def save(self, folder, state, written_as):
        self.state = state

    def load(self, folder, written_as):
        return self.state


@pytest.fixture
def saved(tmp_path):
    """resumed(*overrides, cache=folder): the state of a run that was stopped at step 2 and is started with these."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    (tmp_path / "run.yaml").write_text(CONFIG.format(out=tmp_path))
    three_shards(tmp_path / "cache")
    engine, folder = Engine(), tmp_path / "checkpoints"

    def checkpoints(cache, *overrides):
        content = content_of(CacheReader(tmp_path / cache).manifest)
        identity = run_identity(load_config(tmp_path / "run.yaml", overrides), content)
        found = find_resumable(folder, identity, 1, lambda text: pytest.fail(text))
        return Checkpoints(folder, engine, Ranks(), identity, resume=found)

    checkpoints("cache").save(2, {"step": 2})
    yield lambda *overrides, cache="cache": checkpoints(cache, *overrides).load()
    dist.destroy_process_group()


def of_version_2(path) -> dict:
    """A manifest as it was before it had a hash of its own."""
    manifest = json.loads(path.read_text()) | {"version": 2}
    del manifest["sha256"]
    return manifest


def refusal(resumed, *overrides, **cache) -> str:
    with pytest.raises(CheckpointError) as caught:
        resumed(*overrides, **cache)
    return str(caught.value)


def test_where_the_cache_lies_and_who_was_asked_for_it_is_free(saved, tmp_path):
    (tmp_path / "cache").rename(tmp_path / "moved")
    asked = (
        "url: http://two/v1, model: large, concurrency: 2, retries: 3, max_missing: 0.5",
        "url: http://one:8000/v1, model: large, api_key_env: KEY",
    )
    for endpoint in asked:
        assert saved(f"teacher.cache.path={tmp_path}/moved", f"teacher.endpoint={{{endpoint}}}", cache="moved") == {
            "step": 2
        }
    assert "teacher.cache was" in refusal(saved, "teacher.cache.t_tolerance=0.1", cache="moved")


def test_a_cache_that_was_captured_again_is_refused(saved, tmp_path):
    three_shards(tmp_path / "other", seed=1)
    said = refusal(saved, cache="other")
    assert said.startswith(
        f"cannot go on from {tmp_path}/checkpoints/step-00000002: it was trained from another teacher.cache (it was "
        "captured again: its "
        "signal was "
    )
    assert (
        said.endswith("): put the old cache back, choose another run.name, or give --fresh to begin again")
        and "no signal" not in said
    )


def test_another_teacher_of_the_same_draws_is_refused(saved, tmp_path):
    records = three_shards(tmp_path / "first")
    write(tmp_path / "other", SAMPLED, [records[cut] for cut in CUTS], IDENTITY | {"weights": "9"})
    assert saved(cache="first") == {"step": 2}  # captured anew with the same bytes
    assert "it was captured again" in refusal(saved, cache="other")


def test_other_missing_records_are_refused_and_other_reasons_are_not(saved, tmp_path):
    records = three_shards(tmp_path / "unused")
    shards = [records[cut] for cut in CUTS]
    write(tmp_path / "fewer", SAMPLED, shards, missing=[LATER])
    write(tmp_path / "same", SAMPLED, shards, missing=[LATER._replace(reason="status 500", record_id="again")])
    said = refusal(saved, cache="fewer")
    assert (
        "another teacher.cache (other records have no signal: 0 (" in said
        and " then, 1 (" in said
        and "captured again" not in said
    )
    assert content_of(CacheReader(tmp_path / "fewer").manifest) == content_of(CacheReader(tmp_path / "same").manifest)


def test_another_configuration_is_named(saved):
    said = refusal(saved, "training.steps=5", "teacher.path=teachers/small")
    assert (
        "another configuration (teacher.path was 'teachers/large' and is 'teachers/small'; training.steps was 4 "
        "and is 5)" in said
    )


def test_a_checkpoint_that_does_not_say_which_cache_is_refused(saved, tmp_path):
    """As earlier versions wrote them."""
    path = list_checkpoints(tmp_path / "checkpoints")[0] / MANIFEST
    manifest = of_version_2(path)
    del manifest["identity"][CACHE]
    manifest["identity"]["teacher.cache"]["path"] = "cache"
    path.write_text(json.dumps(manifest))
    said = refusal(saved)
    assert (
        "an earlier version of this program wrote it, which did not note what was in the teacher's cache" in said
        and "--fresh" in said
    )


def find(tmp_path, identity):
    return find_resumable(tmp_path / "checkpoints", identity, 1, lambda text: pytest.fail(text))


def identity_of(tmp_path, *overrides, contents=None):
    content = content_of(CacheReader(tmp_path / "cache").manifest)
    return run_identity(load_config(tmp_path / "run.yaml", overrides), content, contents)


def test_a_lengthened_run_resumes_and_says_what_its_schedules_span(saved, tmp_path):
    found = find(tmp_path, identity_of(tmp_path, "training.steps=9"))
    assert found.step == 2
    assert found.lengthened == "training.steps was 4 and is 9: schedules span the new number from here on"
    assert find(tmp_path, identity_of(tmp_path)).lengthened is None
    with pytest.raises(CheckpointError, match="training.steps was 4 and is 1"):
        find(tmp_path, identity_of(tmp_path, "training.steps=1"))  # below the checkpoint's step


def test_what_stands_behind_a_name_is_compared_by_content(saved, tmp_path):
    """Another chat template or teacher of the same name is another run; a checkpoint that noted none is taken."""
    assert find(tmp_path, identity_of(tmp_path, contents={"chat template": "a", "tokenizer": "b"})) is not None
    path = tmp_path / "checkpoints" / "step-00000002" / MANIFEST
    manifest = of_version_2(path)
    manifest["identity"] = identity_of(tmp_path, contents={"chat template": "a", "tokenizer": "b"})
    path.write_text(json.dumps(manifest))
    assert find(tmp_path, identity_of(tmp_path, contents={"chat template": "a", "tokenizer": "b"})) is not None
    with pytest.raises(CheckpointError, match=r"\(content of chat template was 'a' and is 'c'\)"):
        find(tmp_path, identity_of(tmp_path, contents={"chat template": "c", "tokenizer": "b"}))


def test_a_checkpoint_from_before_turns_could_be_split_is_resumed():
    now = {"data.turns": "auto", "tokenizer.template_variables": None}
    assert difference({}, now) is None
    assert "data.turns was 'auto' and is 'each'" in difference({}, now | {"data.turns": "each"})
    assert "template_variables" in difference({}, now | {"tokenizer.template_variables": {"enable_thinking": False}})
