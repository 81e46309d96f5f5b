"""Published package of BFCL, bfcl-eval: its data, the classes that execute calls, and its checkers.

Of its requirements only those of the parts that are used need be installed: the module that imports every vendor's
client is replaced by what the checker reads of it, and folders that it makes on import go to a temporary place.

Its code evaluates a call as Python text. Only calls of the entry's own methods, with arguments that are names, reach
it: a model may write any other name, `open` or `exec` among them, and gets the error that an unknown one gives.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import keyword
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from kd.evaluation.bfcl.categories import BfclError
from kd.evaluation.conversations.dialogue import Call

_MODEL = "spanwise"  # by which the checker looks up how names are written
_MODELS = "bfcl_eval.constants.model_config"
_MISSING = (
    'the package bfcl-eval is not installed: pip install "spanwise[bfcl]", or, where its pins do not fit, '
    "pip install --no-deps bfcl-eval=="
)
TESTED = "2026.3.23"


class Entry(NamedTuple):
    """Entry of one category.

    Attributes:
        asked: as the model sees it: "question", a list of turns' messages; "function", with hints on the language;
            "missed_function", of multi-turn, the functions that come by turn.
        judged: as the checker takes it.
        truth: allowed values by call, or calls by turn as Python text; None where no call is right.
    """

    id: str
    category: str
    asked: dict[str, Any]
    judged: dict[str, Any]
    truth: list[Any] | None


class Verdict(NamedTuple):
    """Verdict of its checker, with its name of the error; "" where valid."""

    valid: bool
    error: str


class Package:
    """bfcl-eval, imported.

    Raises:
        BfclError: it is not installed, or lacks something that it imports.
    """

    def __init__(self):
        if importlib.util.find_spec("bfcl_eval") is None:
            raise BfclError(f"--bfcl: {_MISSING}{TESTED}")
        if "BFCL_PROJECT_ROOT" not in os.environ:
            # It makes folders there, beside itself by default; the lock files of its data are among them.
            self._root = tempfile.TemporaryDirectory(prefix="bfcl-")
            os.environ["BFCL_PROJECT_ROOT"] = self._root.name
        models = sys.modules.setdefault(_MODELS, ModuleType(_MODELS))
        known = vars(models).setdefault("MODEL_CONFIG_MAPPING", {})
        known[_MODEL] = SimpleNamespace(underscore_to_dot=True)
        try:
            self._utils = importlib.import_module("bfcl_eval.utils")
            self._ast = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
            self._turns = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
            self._executor = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils")
            self._languages = importlib.import_module("bfcl_eval.constants.enums").Language
            prompts = importlib.import_module("bfcl_eval.constants.default_prompts")
        except ImportError as error:
            raise BfclError(
                f"--bfcl: bfcl-eval {self.version} cannot be imported: {error}; install what it needs, or version "
                f"{TESTED}"
            ) from error
        self.most_steps: int = prompts.MAXIMUM_STEP_LIMIT
        self.more_functions: str = prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC

    @property
    def version(self) -> str:
        """Version of the package."""
        return importlib.metadata.version("bfcl-eval")

    def read_entries(self, category: str) -> list[Entry]:
        """Read the entries of a category, in the order of its file."""
        asked = self._utils.load_dataset_entry(category)
        judged = self._utils.load_dataset_entry(category, include_language_specific_hint=False)
        truths: list[Any] = [None] * len(asked)
        if "relevance" not in category:
            truths = [one["ground_truth"] for one in self._utils.load_ground_truth_entry(category)]
        return [
            Entry(one["id"], category, one, two, truth) for one, two, truth in zip(asked, judged, truths, strict=True)
        ]

    def check_calls(self, entry: Entry, calls: Sequence[Call]) -> Verdict:
        """Check the calls of a single-turn answer."""
        if "relevance" in entry.category:
            wanted = "irrelevance" not in entry.category
            error = "relevance_error:decoder_failed" if wanted else "irrelevance_error:decoder_success"
            return Verdict(bool(calls) == wanted, "" if bool(calls) == wanted else error)
        name = "javascript" if "javascript" in entry.category else "java" if "java" in entry.category else "python"
        given = [{call["name"]: call["arguments"]} for call in calls]
        return self._run(
            self._ast.ast_checker,
            copy.deepcopy(entry.judged["function"]),
            given,
            entry.truth,
            self._languages(name),
            entry.category,
            _MODEL,
        )

    def check_turns(self, entry: Entry, turns: Sequence[Sequence[Sequence[Call]]]) -> Verdict:
        """Check the calls of each step of each turn of a multi-turn answer, by its state machines."""
        assert entry.truth is not None
        if len(turns) != len(entry.truth):
            return Verdict(False, "multi_turn:force_terminated")
        methods = self._list_methods(entry)
        decoded = [
            [
                [_write_call(call) if _explain(call, methods) is None else "refused_call()" for call in step]
                for step in turn
            ]
            for turn in turns
        ]
        with self.keep_states():
            return self._run(self._turns.multi_turn_checker, decoded, entry.truth, entry.judged, entry.category, _MODEL)

    def execute(self, entry: Entry, calls: Sequence[Call]) -> list[str]:
        """Execute calls of a multi-turn entry on its state, which `keep_states` drops; a text for each."""
        methods = self._list_methods(entry)
        problems = [_explain(call, methods) for call in calls]
        allowed = [_write_call(call) for call, problem in zip(calls, problems) if problem is None]
        results = iter(self._execute(entry, allowed)[0])
        return [next(results) if problem is None else f"Error during execution: {problem}" for problem in problems]

    @contextlib.contextmanager
    def keep_states(self) -> Iterator[None]:
        """Keep the states of entries between calls of `execute` within it, and drop them after: the package keeps the
        instances for good.
        """
        before = set(vars(self._executor))
        try:
            yield
        finally:
            for name in set(vars(self._executor)) - before:
                del vars(self._executor)[name]

    def _execute(self, entry: Entry, calls: list[str]) -> tuple[list[str], dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            return self._executor.execute_multi_turn_func_call(
                calls,
                entry.judged["initial_config"],
                entry.judged["involved_classes"],
                _MODEL,
                entry.id,
                long_context="long_context" in entry.category,
            )

    def _list_methods(self, entry: Entry) -> set[str]:
        instances = self._execute(entry, [])[1].values()
        return {
            name
            for instance in instances
            for name, _ in inspect.getmembers(instance, predicate=inspect.ismethod)
            if not name.startswith("_")
        }

    def _run(self, checker: Any, *given: Any) -> Verdict:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its converters print
                found = checker(*given)
        except Exception as error:  # its own run ends here; an answer that it cannot judge is not right
            return Verdict(False, f"checker:{type(error).__name__}")
        return Verdict(found["valid"], "" if found["valid"] else found["error_type"])


def _write_call(call: Call) -> str:
    """Write a call as the package's handlers of function calls do."""
    return f"{call['name']}({','.join(f'{key}={value!r}' for key, value in call['arguments'].items())})"


def _explain(call: Call, methods: set[str]) -> str | None:
    """Explain why a call is not executed; None where it is."""
    if call["name"] not in methods:
        return f"name {call['name']!r} is not defined"
    wrong = next((key for key in call["arguments"] if not key.isidentifier() or keyword.iskeyword(key)), None)
    return None if wrong is None else f"invalid syntax: {wrong!r} is no argument's name"
