"""Tasks: a prompt with all that is known of it before the teacher sees it."""

from __future__ import annotations

from typing import Any, NamedTuple

from kd.generation.journal import name_value


class Task(NamedTuple):
    """One prompt.

    Attributes:
        messages: before the first answer, as a record has them.
        tools: on offer.
        followups: user messages that follow, each once the one before is answered.
        kind: of kd.config.sections.generation.Mix; "given" where it comes from a file.
        template: name of a composed prompt's template; "" of a file's.
        wanted: calls of the first answer; None where nobody knows.
        gold: messages of a given conversation, which rewards compare with; None where there is none.
        fails: first calls that get an error in place of a result.
        split: file of records that it belongs to: train, unseen_tools or unseen_templates.
        caws: context that stands in the messages.
        source: place it comes from, for messages.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    followups: tuple[str, ...] = ()
    kind: str = "given"
    template: str = ""
    wanted: tuple[dict[str, Any], ...] | None = None
    gold: list[dict[str, Any]] | None = None
    fails: int = 0
    split: str = "train"
    caws: dict[str, Any] | None = None
    source: str = ""

    @property
    def key(self) -> str:
        """Name of its content, the place aside."""
        return name_value({name: value for name, value in self._asdict().items() if name != "source"})

    @property
    def text(self) -> str:
        """Words of the user, by which prompts are told apart."""
        said = [one["content"] for one in self.messages if one["role"] == "user"]
        return "\n".join([*said, *self.followups])
