"""Models that `--model` names, made ready to answer: a saved model by folder or hub id, a checkpoint of a run, an
endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kd.checkpoints.whole import find_checkpoint, is_checkpoint, load_student, read_student
from kd.config.schema import Endpoint
from kd.evaluation.answerers.answer import Answerer
from kd.evaluation.answerers.endpoint import EndpointModel, Server
from kd.evaluation.answerers.journal import Journal
from kd.evaluation.answerers.local_model import LocalModel
from kd.models.load import check_vocabulary, load_whole_model, read_model_config
from kd.models.model_files import check_weights
from kd.models.tokenizer import read_rendering_tokenizer
from kd.rendering.call_syntax import find_syntax
from kd.rollouts.decode import Sampling

_KEY = "--model"


class Asking(NamedTuple):
    """Settings of an evaluation that every answerer has.

    Attributes:
        max_new_tokens: longest answer.
        sampling: distribution to draw from; None takes the most likely tokens.
        batch_size: prompts that a local model continues together.
        device: of a local model.
        endpoint: settings of an endpoint; address and model are put in.
        served: name of an entrant -> the model that its endpoint serves, or of "" for all others.
        journal: of what endpoints answered.
        say: told, in words, what a person should know.
    """

    max_new_tokens: int
    sampling: Sampling | None
    batch_size: int
    device: torch.device
    endpoint: Endpoint | None = None
    served: Mapping[str, str] = {}
    journal: Journal | None = None
    say: Callable[[str], None] = print


class Ready(NamedTuple):
    """Model or endpoint that was looked at, and will be opened when it is its turn.

    tokenizer: renders its prompts; None of an endpoint, which renders by itself.
    """

    tokenizer: Any | None
    open: Callable[[], Answerer]


def settle(place: str, say: Callable[[str], None]) -> str:
    """Return the checkpoint that is meant where `place` is a run's folder or a checkpoint, else `place`; one rank calls
    it, since a running job makes new ones.

    say: told what is taken.

    Raises:
        CheckpointError: no checkpoint there is whole.
    """
    folder = Path(place)
    return str(find_checkpoint(folder, say)) if not is_address(place) and is_checkpoint(folder) else place


def is_address(place: str) -> bool:
    """Tell whether a place is an endpoint's address."""
    return place.startswith(("http://", "https://"))


def make_ready(name: str, place: str, asking: Asking) -> Ready:
    """Look at what `place` names; weights are loaded by `Ready.open`.

    place: folder of a model, hub id as ID or ID@REVISION, a checkpoint that `settle` returned, or an address.

    Raises:
        EndpointError: the endpoint cannot be used.
        TokenizerError, StudentError, CheckpointError, ConfigError: nothing that can be read is there.
        CallSyntaxError: the calls that the chat template writes are not read back.
    """
    if is_address(place):
        answerer = _open_endpoint(name, place, asking)
        return Ready(None, lambda: answerer)
    if is_checkpoint(Path(place)):
        saved = read_student(Path(place))
        find_syntax(saved.tokenizer)
        return Ready(saved.tokenizer, lambda: _open(load_student(saved), saved.tokenizer, asking))
    path, revision = split_revision(place)
    tokenizer = read_rendering_tokenizer(path, revision, key=_KEY)
    find_syntax(tokenizer)
    check_vocabulary(read_model_config(path, revision, key=_KEY), tokenizer, f"{_KEY}: {path}")
    if Path(path).is_dir():
        check_weights(Path(path))
    return Ready(tokenizer, lambda: _open(load_whole_model(path, revision), tokenizer, asking))


def split_revision(place: str) -> tuple[str, str | None]:
    """Split a hub id's revision off, as in NAME@REVISION; a path that is there has none."""
    name, at, revision = place.rpartition("@")
    return (name, revision) if at and name and revision and not Path(place).exists() else (place, None)


def _open(model: Any, tokenizer: Any, asking: Asking) -> LocalModel:
    return LocalModel(
        model.to(asking.device).eval(),
        tokenizer,
        batch_size=asking.batch_size,
        max_new_tokens=asking.max_new_tokens,
        sampling=asking.sampling,
    )


def _open_endpoint(name: str, address: str, asking: Asking) -> EndpointModel:
    assert asking.endpoint is not None, "given with every address"
    served = asking.served.get(name, asking.served.get("", ""))
    settings = asking.endpoint.model_copy(update={"url": address, "model": served})
    return EndpointModel(Server(settings, asking.max_new_tokens, asking.sampling, asking.journal, asking.say))
