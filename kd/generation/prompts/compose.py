"""Prompts composed of a folder of tools: kinds by weight, languages in turn, each prompt another.

The Nth prompt depends on the seed, the tools and the prompts before it alone, so that the same command composes the
same ones, and one that asks for more begins with them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from kd.config.sections.generation import Prompts, Splits
from kd.errors import SpanwiseError
from kd.generation.prompts.duplicates import Seen
from kd.generation.prompts.phrases import ASK, GIVE, JOIN, NOTHING, TALK, TOPICS
from kd.generation.prompts.schema_values import draw_arguments
from kd.generation.prompts.splits import TRAIN, UNSEEN_TEMPLATES, UNSEEN_TOOLS, choose_held_out
from kd.generation.prompts.task import Task
from kd.toolcalls.json_values import as_text
from kd.toolcalls.registry import ToolRegistry

_TRIES = 200  # draws of one prompt that may all be there already
_WORD = re.compile(r"[a-z]+")
Tool = dict[str, Any]


class ComposeError(SpanwiseError, ValueError):
    """Tools of which the prompts that are asked for cannot be composed."""


class Composer:
    """Composer of prompts.

    Attributes:
        duplicates: drawn prompts that were left out, by "equal" and "near".

    Raises:
        ComposeError: a kind of prompt needs more tools than there are.
    """

    def __init__(self, tools: ToolRegistry, prompts: Prompts, splits: Splits, seed: int):
        self._tools, self._prompts, self._seed = list(tools), prompts, seed
        self._held_tools = choose_held_out([_name(tool) for tool in self._tools], splits.tools, seed)
        names = [f"{kind}/{at}" for kind, texts in (("ask", ASK), ("talk", TALK)) for at in _places(texts)]
        self._held_templates = choose_held_out(names, splits.templates, seed)
        mix = prompts.mix
        weights = {
            "single": mix.single,
            "several": mix.several,
            "near_miss": mix.near_miss,
            "no_tool": mix.no_tool,
            "missing": mix.missing,
            "recovery": mix.recovery,
        }
        self._kinds = {kind: weight for kind, weight in weights.items() if weight}
        self.duplicates: Counter[str] = Counter()
        least = {"several": 2, "near_miss": 2}
        for kind, num in least.items():
            if kind in self._kinds and len(self._seen_tools()) < num:
                raise ComposeError(
                    f"prompts.mix.{kind}: needs {num} tools that are not held out: give more tools, or weight 0"
                )
        if "missing" in self._kinds and not any(map(_required, self._tools)):
            raise ComposeError("prompts.mix.missing: no tool has a required argument: give it weight 0")

    def _seen_tools(self) -> list[Tool]:
        return [tool for tool in self._tools if _name(tool) not in self._held_tools]

    def compose(self, num: int) -> Iterator[Task]:
        """Yield `num` tasks, no two alike.

        Raises:
            ComposeError: there are not so many.
            SchemaError: no arguments are found for a tool.
        """
        seen, made = Seen(self._prompts.near_duplicates), dict.fromkeys(self._kinds, 0)
        total = sum(self._kinds.values())
        for index in range(num):
            kind = max(self._kinds, key=lambda one: self._kinds[one] * (index + 1) / total - made[one])
            made[kind] += 1
            language = self._prompts.languages[index % len(self._prompts.languages)]
            for attempt in range(_TRIES):
                task = self._draw(kind, language, random.Random(f"{self._seed}/{index}/{attempt}"))
                again = seen.add(task.text)
                if not again:
                    yield task
                    break
                self.duplicates[again] += 1
            else:
                raise ComposeError(
                    f"prompts.num: only {index} distinct prompts were composed of these {len(self._tools)} tools; the "
                    f"next, of kind {kind} in {language}, is always there already: ask for fewer, add tools, or "
                    "languages, or raise prompts.near_duplicates"
                )

    def _draw(self, kind: str, language: str, generator: random.Random) -> Task:
        if kind == "no_tool":
            at = generator.randrange(len(TALK[language]))
            text = TALK[language][at].format(
                number=generator.randint(20, 999),
                small=generator.randint(3, 12),
                topic=generator.choice(TOPICS[language]),
            )
            offered = self._choose_distractors([], generator, held=False, least=1)
            return self._make(text, offered, [], f"talk/{at}", kind=kind, wanted=())
        candidates = [tool for tool in self._tools if _required(tool)] if kind == "missing" else self._tools
        target = generator.choice(candidates)
        held = _name(target) in self._held_tools
        at = generator.randrange(len(ASK[language]))
        arguments = draw_arguments(target, generator)
        call = {"name": _name(target), "arguments": arguments}
        if kind == "missing":
            absent = generator.choice(sorted(set(_required(target)) & arguments.keys()))
            left = {key: value for key, value in arguments.items() if key != absent}
            text = _write(ASK[language][at], target, left, language)
            given = GIVE[language].format(values=_show({absent: arguments[absent]}, language))
            offered = self._choose_distractors([target], generator, held=held)
            return self._make(text, offered, [target], f"ask/{at}", kind=kind, wanted=(), followups=(given,))
        text = _write(ASK[language][at], target, arguments, language)
        if kind == "near_miss":
            pool = [
                tool for tool in self._tools if tool is not target and (held or _name(tool) not in self._held_tools)
            ]
            alike = sorted(pool, key=lambda tool: (-_likeness(tool, target), _name(tool)))
            offered = alike[: max(1, self._prompts.num_distractors)]
            return self._make(text, offered, [target], f"ask/{at}", kind=kind, wanted=())
        if kind == "several":
            pool = self._tools if held else self._seen_tools()
            other = generator.choice([tool for tool in pool if tool is not target])
            second = draw_arguments(other, generator)
            texts = text, _write(generator.choice(ASK[language]), other, second, language)
            text = generator.choice(JOIN[language]).format(one=texts[0], two=texts[1])
            offered = self._choose_distractors([target, other], generator, held=held)
            wanted = (call, {"name": _name(other), "arguments": second})
            return self._make(text, offered, [target, other], f"ask/{at}", kind=kind, wanted=wanted)
        offered = self._choose_distractors([target], generator, held=held)
        fails = int(kind == "recovery")
        return self._make(text, offered, [target], f"ask/{at}", kind=kind, wanted=(call,), fails=fails)

    def _choose_distractors(
        self, targets: Sequence[Tool], generator: random.Random, *, held: bool, least: int = 0
    ) -> list[Tool]:
        """Choose further tools and mix the targets among them; held-out ones only where `held`."""
        pool = [tool for tool in (self._tools if held else self._seen_tools()) if tool not in targets]
        num = min(len(pool), max(least, self._prompts.num_distractors))
        offered = [*targets, *generator.sample(pool, num)]
        generator.shuffle(offered)
        return offered

    def _make(self, text: str, offered: list[Tool], named: list[Tool], template: str, **known: Any) -> Task:
        names = {_name(tool) for tool in [*offered, *named]}
        split = UNSEEN_TOOLS if names & self._held_tools else TRAIN
        if split == TRAIN and template in self._held_templates:
            split = UNSEEN_TEMPLATES
        messages = [{"role": "user", "content": text}]
        return Task(messages, offered, template=template, split=split, source="composed", **known)


def _places(texts: dict[str, Sequence[str]]) -> range:
    return range(max(map(len, texts.values())))


def _name(tool: Tool) -> str:
    return tool["function"]["name"]


def _required(tool: Tool) -> list[str]:
    return list((tool["function"].get("parameters") or {}).get("required", []))


def _write(template: str, tool: Tool, arguments: dict[str, Any], language: str) -> str:
    described = (tool["function"].get("description") or _name(tool).replace("_", " ")).strip()
    task = re.split(r"(?<=[.!?])\s", described)[0].rstrip(".!?")
    task = task[:1].lower() + task[1:] if task[1:2].islower() or task[1:2] == " " else task
    text = template.format(task=task, values=_show(arguments, language))
    return text[:1].upper() + text[1:]


def _show(arguments: dict[str, Any], language: str) -> str:
    shown = [f"{key.replace('_', ' ')}: {as_text(value)}" for key, value in arguments.items()]
    return ", ".join(shown) or NOTHING[language]


def _likeness(one: Tool, two: Tool) -> float:
    """Return the Jaccard index of the words of two tools' names and descriptions."""
    words = [
        set(_WORD.findall(f"{_name(tool)} {tool['function'].get('description', '')}".lower().replace("_", " ")))
        for tool in (one, two)
    ]
    return len(words[0] & words[1]) / (len(words[0] | words[1]) or 1)
