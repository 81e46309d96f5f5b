"""YAML as a person means it, with the line of every key.

PyYAML's safe loader keeps the last of two equal keys without a word, reads `3e-4` as text, `no` as False and `1:30` as
90 (it follows YAML 1.1). This reader resolves plain scalars by the core rules of YAML 1.2, knows no tag beyond the
plain types, and returns the line of each key beside the data, so that an error can name it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

Path = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_TAG = "tag:yaml.org,2002:"
_MAX_DIGITS = 40  # the largest bound of any key has 19; Python itself refuses to read 4,300
_GLUED = re.compile(r"[ -]*([A-Za-z_]\w*):[^\s:/].*$")


class Problem(NamedTuple):
    """One thing wrong: the line of the file (from 1; 0 when unknown), the key, and what to do about it."""

    line: int
    path: Path
    message: str


class Parsed(NamedTuple):
    """YAML document as plain data, with the line of each key."""

    data: Any  # dicts, tuples (never lists: a frozen configuration holds them), str, int, float, bool, None
    lines: dict[Path, int]
    problems: list[Problem]


class YamlError(ValueError):
    """Text that is not YAML at all. `line` is 1-based; 0 when the parser could not say."""

    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # its own table: PyYAML's is shared by every loader of the process

    def compose_node(self, parent, index):
        """Refuse aliases: a configuration is read top to bottom, and an alias can nest into itself or explode."""
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias (*name): write the value out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}  # the same rules, so that text which looks like a number is written in quotes


for _name, _pattern, _first in (
    ("null", _NULL, [*"~nN", ""]),
    ("bool", _BOOL, [*"tTfF"]),
    ("int", _INT, [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
):
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(_TAG + _name, _pattern, _first)
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)
# PyYAML folds these as line breaks where it writes unicode plainly; quoted, it escapes them.
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        _TAG + "str", text, '"' if re.search("[\x85\u2028\u2029]", text) else None
    ),
)


def parse(text: str) -> Parsed:
    """Parse one YAML document. Raises YamlError where the text is not YAML; anything milder is in `problems`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        if (glued := _find_glued(text, line)) is not None:
            raise YamlError(*glued) from None
        raise YamlError(line, f"{error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"character {error.character!r} is not allowed in YAML: remove it") from None
    except RecursionError:
        deepest = max(enumerate(text.splitlines(), 1), key=lambda line: line[1].count("[") + line[1].count("{"))
        raise YamlError(deepest[0], "nested too deeply to be a configuration: this is another file") from None
    parsed = Parsed(None, {}, [])
    return parsed if node is None else parsed._replace(data=_build(node, (), parsed))


def dump(data: Any) -> str:
    """Write plain data as YAML that `parse` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def glued_key(text: str) -> str | None:
    """Return the key of `key:value`, which is text in YAML for want of a space after the colon; None for other text."""
    found = _GLUED.match(text)
    return found[1] if found else None


def _find_glued(text: str, line: int) -> tuple[int, str] | None:
    """Find `key:value` on the line that the parser stumbled over, or on the one with text before it, and say so.

    The value is not repeated: it may be a secret.
    """
    lines = text.split("\n")[:line]
    numbered = [(number, content) for number, content in enumerate(lines, 1) if content.strip()]
    for number, content in reversed(numbered[-2:]):
        if (key := glued_key(content)) is not None:
            return number, f"`{key}:` needs a space after its colon: write `{key}: ...`"
    return None


def _build(node: yaml.Node, path: Path, parsed: Parsed) -> Any:
    parsed.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _mapping(node, path, parsed)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return tuple(_build(child, (*path, i), parsed) for i, child in enumerate(node.value))
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _TAG + "int" and _INT.match(node.value) and len(node.value) > _MAX_DIGITS:
            message = f"a number of {len(node.value):,} digits: no key takes one as long: write a smaller one"
            parsed.problems.append(Problem(node.start_mark.line + 1, path, message))
            return None
        try:
            return _scalar(node)
        except ValueError:
            pass  # reported just below: the tag and the text disagree
    # Name no tag of the user's own: it may be a password that begins with "!".
    tag = f"tag {node.tag.replace(_TAG, '!!')}" if node.tag.startswith(_TAG) else "a tag (!name)"
    parsed.problems.append(
        Problem(
            node.start_mark.line + 1,
            path,
            f"{tag} is not understood here: write a plain value, in quotes if it begins with !",
        )
    )
    return None


def _mapping(node: yaml.MappingNode, path: Path, parsed: Parsed) -> dict:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            parsed.problems.append(Problem(line, path, "a key must be plain text, not a list or a mapping"))
            continue
        key = key_node.value  # the text as written: `on:` and `1:` are keys like any other
        child = (*path, key)
        if key in result:
            first = parsed.lines[child]
            parsed.problems.append(Problem(line, child, f"given twice (first on line {first}): keep one"))
            continue
        parsed.lines[child] = line
        result[key] = _build(value_node, child, parsed)
    return result


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, value = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        return value
    if kind == "null" and _NULL.match(value):
        return None
    if kind == "bool" and _BOOL.match(value):
        return value.lower() == "true"
    if kind == "int" and _INT.match(value):
        return int(value.replace("_", ""))
    if kind == "float" and _FLOAT.match(value):
        return float(value.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError(kind)
