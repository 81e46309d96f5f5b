"""BFCL's own checker, run in an environment of its own (bfcl-eval pins numpy 1.26.4); benchmarks/bfcl_agreement.py
starts it.

    PYTHON bfcl_checker.py entries > entries.jsonl               {"id", "category", "function", "truth"} a line
    PYTHON bfcl_checker.py version                               its version, as JSON
    PYTHON bfcl_checker.py judge < answers.jsonl > verdicts.jsonl   {"id", "category", "text"} -> {"valid", "error"}

Texts are read by its handler of Qwen's function calls, whose syntax is <tool_call> JSON. A checker that raises has no
verdict: valid is null, and error the exception's name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

_AST = ("simple", "multiple", "parallel", "parallel_multiple")
SINGLE_TURN = [
    "simple_python",
    "simple_java",
    "simple_javascript",
    *_AST[1:],
    "irrelevance",
    *(f"live_{name}" for name in (*_AST, "irrelevance", "relevance")),
]


def read_entries() -> dict[str, dict[str, Any]]:
    """Read the entries of every single-turn category, by id, from the files of the package."""
    data = Path(str(importlib.import_module("bfcl_eval").__file__)).parent / "data"
    entries = {}
    for category in SINGLE_TURN:
        name = f"BFCL_v4_{category}.json"
        truths = {}
        if (data / "possible_answer" / name).exists():
            truths = {one["id"]: one["ground_truth"] for one in read_lines(data / "possible_answer" / name)}
        for one in read_lines(data / name):
            function = one["function"] if isinstance(one["function"], list) else [one["function"]]
            entry = {"id": one["id"], "category": category, "function": function, "truth": truths.get(one["id"])}
            entries[one["id"]] = entry
    return entries


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def make_judge():
    """Return (entry, text) -> {"valid", "error"}."""
    handlers = importlib.import_module("bfcl_eval.model_handler.local_inference.qwen_fc")
    runner = importlib.import_module("bfcl_eval.eval_checker.eval_runner")
    enums = importlib.import_module("bfcl_eval.constants.enums")
    models = importlib.import_module("bfcl_eval.constants.model_config").MODEL_CONFIG_MAPPING
    model = next(name for name in models if name.endswith("-FC") and not models[name].underscore_to_dot)
    handler = object.__new__(handlers.QwenFCHandler)  # its reading of texts needs no model

    def judge(entry: dict[str, Any], text: str) -> dict[str, Any]:
        category = entry["category"]
        language = "javascript" if "javascript" in category else "java" if "java" in category else "python"
        about = (handler, entry["id"], text)
        try:
            if "relevance" in category:
                found = runner._evaluate_single_relevance_entry(*about, entry, model, category)
            else:
                found = runner._evaluate_single_ast_entry(
                    *about,
                    entry["truth"],
                    entry,
                    model,
                    category,
                    enums.Language(language),
                    enums.ReturnFormat(language),
                )
        except Exception as error:
            return {"valid": None, "error": type(error).__name__}
        return {"valid": found["valid"], "error": "" if found["valid"] else found["error_type"]}

    return judge


def main() -> None:
    if sys.argv[1] == "version":
        print(json.dumps(f"bfcl-eval {importlib.metadata.version('bfcl-eval')}"))
        return
    entries = read_entries()
    if sys.argv[1] == "entries":
        for entry in entries.values():
            print(json.dumps(entry))
        return
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # its converters print
        judge = make_judge()
        for line in sys.stdin:
            answer = json.loads(line)
            out.write(json.dumps(judge(entries[answer["id"]], answer["text"])) + "\n")


if __name__ == "__main__":
    main()
