"""Chat templates of families that write calls in ways of their own, minimal, after each family's published form.

A family is what it writes for a turn's calls (CALLS), around which SKELETON is the same for all, and the text of two
calls as a person read it.
"""

from __future__ import annotations

from typing import NamedTuple

SKELETON = """{%- macro quoted(value, mark) -%}
{%- if value is string %}{{ mark + value + mark }}
{%- elif value is mapping %}{{ '{' }}{% for k, v in value.items() %}{{ k + ':' }}{{ quoted(v, mark) }}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}
{%- elif value is sequence %}[{% for v in value %}{{ quoted(v, mark) }}{% if not loop.last %},{% endif %}{% endfor %}]
{%- else %}{{ value | tojson }}{% endif %}
{%- endmacro -%}
{%- macro nested(key, value, ns) -%}
{{ ns + '<' + key + '>' }}
{%- if value is mapping %}{% for k, v in value.items() %}{{ nested(k, v, ns) }}{% endfor %}
{%- elif value is sequence and value is not string %}{% for v in value %}{{ nested('item', v, ns) }}{% endfor %}
{%- else %}{{ value if value is string else value | tojson }}{% endif %}
{{- ns + '</' + key + '>' }}
{%- endmacro -%}
{%- macro kind(value) -%}
{%- if value is string %}string{% elif value is boolean %}boolean{% elif value is number %}number{% elif value is none %}null{% elif value is mapping %}object{% else %}array{% endif %}
{%- endmacro -%}
{{- bos_token }}
{%- for tool in tools or [] %}{{- '<tool>' }}{{- tool | tojson }}{{- '</tool>\\n' }}{% endfor %}
{%- for m in messages %}
{{- '<|' + m.role + '|>' + (m.content or '') }}
{%- if m.tool_calls %}
CALLS
{%- endif %}
{{- eos_token if m.role == 'assistant' else '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""  # noqa: E501

JSON_LIST = """{{- 'OPEN[' }}
{%- for c in m.tool_calls %}{{- '{"name": "' + c.function.name + '", "arguments": ' }}{{- c.function.arguments | tojson }}{{- '}' }}{% if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}
{{- ']CLOSE' }}"""  # noqa: E501
BARE_OBJECTS = """{%- for c in m.tool_calls %}{{- '{"name": "' + c.function.name + '", "KEY": ' }}{{- c.function.arguments | tojson }}{{- '}' }}{% if not loop.last %}{{- 'BETWEEN' }}{% endif %}{% endfor %}"""  # noqa: E501
GEMMA = """{%- for c in m.tool_calls %}{{- 'OPENcall:' + c.function.name }}{{- quoted(c.function.arguments, MARK) }}{{- 'CLOSE' }}{% endfor %}"""  # noqa: E501
PYTHONIC = """{{- 'OPEN[' }}
{%- for c in m.tool_calls %}{{- c.function.name + '(' }}{% for k, v in c.function.arguments.items() %}{{- k + '=' }}VALUE{% if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}{{- ')' }}{% if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}
{{- ']CLOSE' }}"""  # noqa: E501


class Family(NamedTuple):
    """Family: what its template writes for calls, the syntax that reads it, and f(city="Oslo", n=3), g() as text."""

    calls: str
    syntax: str
    text: str


def _list(opens: str, closes: str) -> Family:
    pair = '[{"name": "f", "arguments": {"city": "Oslo", "n": 3}}, {"name": "g", "arguments": {}}]'
    return Family(JSON_LIST.replace("OPEN", opens).replace("CLOSE", closes), "object", f"{opens}{pair}{closes}")


def _bare(key: str, between: str) -> Family:
    one, two = (
        f'{{"name": "{name}", "{key}": {given}}}' for name, given in (("f", '{"city": "Oslo", "n": 3}'), ("g", "{}"))
    )
    return Family(
        BARE_OBJECTS.replace("KEY", key).replace("BETWEEN", between.replace("\n", "\\n")),
        "object",
        f"{one}{between}{two}",
    )


def _gemma(opens: str, closes: str, mark: str) -> Family:
    return Family(
        GEMMA.replace("OPEN", opens).replace("CLOSE", closes).replace("MARK", f"'{mark}'"),
        "bare_keys",
        f"{opens}call:f{{city:{mark}Oslo{mark},n:3}}{closes}{opens}call:g{{}}{closes}",
    )


def _pythonic(opens: str, closes: str, value: str, text: str) -> Family:
    return Family(
        PYTHONIC.replace("OPEN", opens).replace("CLOSE", closes).replace("VALUE", value),
        "python",
        f"{opens}[f({text}), g()]{closes}",
    )


FAMILIES = {
    "smollm3": _list("<tool_call>", "</tool_call>"),
    "nemotron_nano_v2": _list("<TOOLCALL>", "</TOOLCALL>"),
    "apriel": _list("<tool_calls>", "</tool_calls>"),
    "firefunction": _list(" functools", ""),
    "granite": _list("<|tool_call|>", ""),
    "apertus": Family(
        """{{- '<|tools_prefix|>[' }}
{%- for c in m.tool_calls %}{{- '{"' + c.function.name + '": ' }}{{- c.function.arguments | tojson }}{{- '}' }}{% if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}
{{- ']<|tools_suffix|>' }}""",  # noqa: E501
        "object",
        '<|tools_prefix|>[{"f": {"city": "Oslo", "n": 3}}, {"g": {}}]<|tools_suffix|>',
    ),
    "command_r": Family(
        """{{- 'Action: ```json\\n[\\n' }}
{%- for c in m.tool_calls %}{{- '    {\\n        "tool_name": "' + c.function.name + '",\\n        "parameters": ' }}{{- c.function.arguments | tojson }}{{- '\\n    }' }}{% if not loop.last %}{{- ',\\n' }}{% endif %}{% endfor %}
{{- '\\n]\\n```' }}""",  # noqa: E501
        "object",
        'Action: ```json\n[\n    {\n        "tool_name": "f",\n        "parameters": {"city": "Oslo", "n": 3}\n    },\n'
        '    {\n        "tool_name": "g",\n        "parameters": {}\n    }\n]\n```',
    ),
    "llama4_json": _bare("parameters", ""),
    "phi4_mini": _bare("arguments", ",\n"),
    "kimi_k2": Family(
        """{{- '<|tool_calls_section_begin|>' }}
{%- for c in m.tool_calls %}{{- '<|tool_call_begin|>' + c.id + '<|tool_call_argument_begin|>' }}{{- c.function.arguments | tojson }}{{- '<|tool_call_end|>' }}{% endfor %}
{{- '<|tool_calls_section_end|>' }}""",  # noqa: E501
        "name_first",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"city": "Oslo", "n": 3}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "deepseek_v31": Family(
        """{{- '<｜tool▁calls▁begin｜>' }}
{%- for c in m.tool_calls %}{{- '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' }}{{- c.function.arguments | tojson }}{{- '<｜tool▁call▁end｜>' }}{% endfor %}
{{- '<｜tool▁calls▁end｜>' }}""",  # noqa: E501
        "name_first",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"city": "Oslo", "n": 3}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "mistral_ids": Family(
        """{%- for c in m.tool_calls %}{{- '[TOOL_CALLS]' + c.function.name + '[CALL_ID]' + c.id + '[ARGS]' }}{{- c.function.arguments | tojson }}{% endfor %}""",  # noqa: E501
        "name_first",
        '[TOOL_CALLS]f[CALL_ID]call00000[ARGS]{"city": "Oslo", "n": 3}[TOOL_CALLS]g[CALL_ID]call00001[ARGS]{}',
    ),
    "mirothinker": Family(
        """{%- for c in m.tool_calls %}{{- '\\n\\n<use_mcp_tool>\\n<server_name>tools</server_name>\\n<tool_name>' + c.function.name + '</tool_name>\\n<arguments>\\n' }}{{- c.function.arguments | tojson }}{{- '\\n</arguments>\\n</use_mcp_tool>' }}{% endfor %}""",  # noqa: E501
        "name_first",
        "\n\n<use_mcp_tool>\n<server_name>tools</server_name>\n<tool_name>f</tool_name>\n<arguments>\n"
        '{"city": "Oslo", "n": 3}\n</arguments>\n</use_mcp_tool>\n\n<use_mcp_tool>\n<server_name>tools</server_name>\n'
        "<tool_name>g</tool_name>\n<arguments>\n{}\n</arguments>\n</use_mcp_tool>",
    ),
    "gpt_oss": Family(
        """{%- for c in m.tool_calls %}{{- ' to=functions.' + c.function.name + '<|channel|>commentary json<|message|>' }}{{- c.function.arguments | tojson }}{{- '<|call|>' }}{% endfor %}""",  # noqa: E501
        "name_first",
        ' to=functions.f<|channel|>commentary json<|message|>{"city": "Oslo", "n": 3}<|call|>'
        " to=functions.g<|channel|>commentary json<|message|>{}<|call|>",
    ),
    "gemma4": _gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma_texts": Family(
        """{%- for c in m.tool_calls %}{{- '<start_function_call>call:' + c.function.name + '{' }}{% for k, v in c.function.arguments.items() %}{{- k + ':<escape>' ~ v ~ '<escape>' }}{% if not loop.last %},{% endif %}{% endfor %}{{- '}<end_function_call>' }}{% endfor %}""",  # noqa: E501
        "bare_keys",
        "<start_function_call>call:f{city:<escape>Oslo<escape>,n:<escape>3<escape>}<end_function_call>"
        "<start_function_call>call:g{}<end_function_call>",
    ),
    "gemma3_pythonic": Family(
        PYTHONIC.replace("OPEN", "")
        .replace("CLOSE", "")
        .replace("VALUE{% if not loop.last %}{{- ', ' }}{% endif %}", "{{- v | tojson }}"),
        "python",
        '[f(city="Oslo"n=3), g()]',
    ),
    "minicpm3": Family(
        """{{- '<|tool_call_start|>\\n```python\\n' }}
{%- for c in m.tool_calls %}{{- c.function.name + '(' }}{% for k, v in c.function.arguments.items() %}{{- k + '=' }}{{- v | tojson }}{% if not loop.last %},{% endif %}{% endfor %}{{- ')\\n' }}{% endfor %}
{{- '```\\n<|tool_call_end|>' }}""",  # noqa: E501
        "python",
        '<|tool_call_start|>\n```python\nf(city="Oslo",n=3)\ng()\n```\n<|tool_call_end|>',
    ),
    "minimax_m1": Family(
        """{{- '<tool_calls>\\n' }}
{%- for c in m.tool_calls %}{{- '{"name": "' + c.function.name + '", "arguments": ' }}{{- c.function.arguments | tojson }}{{- '}\\n' }}{% endfor %}
{{- '</tool_calls>' }}""",  # noqa: E501
        "object",
        '<tool_calls>\n{"name": "f", "arguments": {"city": "Oslo", "n": 3}}\n{"name": "g", "arguments": {}}\n'
        "</tool_calls>",
    ),
    "muse_glimmer": Family(
        """{%- for c in m.tool_calls %}{{- ' to=' + c.function.name + '<|message|><calls>\\n<invoke name="' + c.function.name + '">\\n' }}{% for k, v in c.function.arguments.items() %}{{- '<parameter name="' + k + '">' }}{{- v if v is string else v | tojson }}{{- '</parameter>\\n' }}{% endfor %}{{- '</invoke>\\n</calls><|call|>' }}{% endfor %}""",  # noqa: E501
        "tags",
        ' to=f<|message|><calls>\n<invoke name="f">\n<parameter name="city">Oslo</parameter>\n'
        '<parameter name="n">3</parameter>\n</invoke>\n</calls><|call|> to=g<|message|><calls>\n<invoke name="g">\n'
        "</invoke>\n</calls><|call|>",
    ),
    "glm": Family(
        """{%- for c in m.tool_calls %}{{- '\\n<tool_call>' + c.function.name + '\\n' }}{% for k, v in c.function.arguments.items() %}{{- '<arg_key>' + k + '</arg_key>\\n<arg_value>' }}{{- v if v is string else v | tojson }}{{- '</arg_value>\\n' }}{% endfor %}{{- '</tool_call>' }}{% endfor %}""",  # noqa: E501
        "tags",
        "\n<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>",
    ),
    "dsml": Family(
        """{{- '\\n\\n<｜DSML｜function_calls>\\n' }}
{%- for c in m.tool_calls %}{{- '<｜DSML｜invoke name="' + c.function.name + '">\\n' }}{% for k, v in c.function.arguments.items() %}{{- '<｜DSML｜parameter name="' + k + '" string="' + ('true' if v is string else 'false') + '">' }}{{- v if v is string else v | tojson }}{{- '</｜DSML｜parameter>\\n' }}{% endfor %}{{- '</｜DSML｜invoke>\\n' }}{% endfor %}
{{- '</｜DSML｜function_calls>' }}""",  # noqa: E501
        "tags",
        '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="n" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    ),
    "minimax_m3": Family(
        """{%- set ns = ']<]minimax[>[' %}{{- ns + '<tool_call>\\n' }}
{%- for c in m.tool_calls %}{{- ns + '<invoke name="' + c.function.name + '">' }}{% for k, v in c.function.arguments.items() %}{{- nested(k, v, ns) }}{% endfor %}{{- ns + '</invoke>\\n' }}{% endfor %}
{{- ns + '</tool_call>' }}""",  # noqa: E501
        "tags",
        ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="f">]<]minimax[>[<city>Oslo]<]minimax[>[</city>'
        ']<]minimax[>[<n>3]<]minimax[>[</n>]<]minimax[>[</invoke>\n]<]minimax[>[<invoke name="g">'
        "]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
    ),
    "cdata": Family(
        """{%- for c in m.tool_calls %}{{- '<function_call name="' + c.function.name + '">\\n' }}{% for k, v in c.function.arguments.items() %}{{- '<parameter name="' + k + '">' + ('<![CDATA[' + v + ']]>' if v is string else v | tojson) + '</parameter>\\n' }}{% endfor %}{{- '</function_call>' }}{% endfor %}""",  # noqa: E501
        "tags",
        '<function_call name="f">\n<parameter name="city"><![CDATA[Oslo]]></parameter>\n'
        '<parameter name="n">3</parameter>\n</function_call><function_call name="g">\n</function_call>',
    ),
    "kimi_k3": Family(
        """{{- '<|open|>tools<|sep|>' }}
{%- for c in m.tool_calls %}{{- '<|open|>call tool="' + c.function.name + '" index="' ~ loop.index ~ '"<|sep|>' }}{% for k, v in c.function.arguments.items() %}{{- '<|open|>argument key="' + k + '" type="' + kind(v) + '"<|sep|>' }}{{- v if v is string else v | tojson }}{{- '<|close|>argument<|sep|>' }}{% endfor %}{{- '<|close|>call<|sep|>' }}{% endfor %}
{{- '<|close|>tools<|sep|>' }}""",  # noqa: E501
        "tokens",
        '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Oslo<|close|>argument<|sep|>'
        '<|open|>argument key="n" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
        '<|open|>call tool="g" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    ),
    "lfm2": _pythonic("<|tool_call_start|>", "<|tool_call_end|>", "{{- v | tojson }}", 'city="Oslo", n=3'),
    "toolace": _pythonic("", "", "{{- v | tojson }}", 'city="Oslo", n=3'),
    "llama4_pythonic": _pythonic("", "", """{{- '"%s"' | format(v) }}""", 'city="Oslo", n="3"'),
    "llama32_pythonic": _pythonic("", "", "{{- '%s' | format(v) }}", "city=Oslo, n=3"),
    "quotes_as_they_are": _pythonic(
        "<|python_start|>",
        "<|python_end|>",
        """{{- '"' + v + '"' if v is string else v | tojson }}""",
        'city="Oslo", n=3',
    ),
}

# of a name that nothing opens, at the begin of a turn, or behind the mark that the prompt ends in
FUNCTIONARY = SKELETON.replace(
    "CALLS",
    """{%- if m.content %}{{- '>>>' }}{% endif %}{%- for c in m.tool_calls %}{{- c.function.name + '\\n' }}{{- c.function.arguments | tojson }}{% if not loop.last %}{{- '>>>' }}{% endif %}{% endfor %}""",  # noqa: E501
)


def make_template(name: str) -> str:
    """Make the chat template of a family."""
    return SKELETON.replace("CALLS", FAMILIES[name].calls)
