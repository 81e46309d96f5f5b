"""Minimal chat templates after published forms, records of their cases, and a tokenizer with their control tokens."""

from __future__ import annotations

from transformers import AddedToken, PreTrainedTokenizerFast

from helpers import golden
from kd.records.record import Record, parse_record

DECLARED = "{% for t in tools or [] %}<{{ t.function.name }}>\n{% endfor %}"
OPENED = DECLARED + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
CALLED = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function|tojson }}</tool_call>{% endfor %}"
WRITTEN = OPENED + "{{ m.content }}" + CALLED
END = "<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = WRITTEN + END + PROMPT
_THINKS = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
_THINKS_LAST = "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
_FIND_LAST_USER = (
    "{% set ns = namespace(n=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = loop.index0 %}"
    "{% endif %}{% endfor %}"
)

FORMS = {
    # the next turn's header is written whether asked for or not (Command-A, ToolACE)
    "next header": WRITTEN + END + "{{ '<|im_start|>assistant\n' }}",
    # every turn opens with an empty block, which the generation prompt opens (Qwen3.5, GLM 4.7)
    "block in the prompt": OPENED
    + _THINKS
    + "{{ m.content }}"
    + CALLED
    + END
    + PROMPT.replace("{% endif", "<think>\n{% endif"),
    # the same, but text without a thought has no block (MiniMax M2)
    "block around thoughts": OPENED
    + "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    + CALLED
    + END
    + PROMPT.replace("{% endif", "<think>\n{% endif"),
    # thinking is off by a variable, else the prompt opens a block that no turn has
    "block by a variable": WRITTEN
    + END
    + PROMPT.replace(
        "{% endif", "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif"
    ),
    # the last turn alone has the block (Qwen3)
    "block in the last": OPENED + _THINKS_LAST + "{{ m.content }}" + CALLED + END + PROMPT,
    # an earlier answer ends otherwise than the last (gpt-oss)
    "other end": OPENED
    + "{{ m.content }}"
    + CALLED
    + "{% if loop.last and m.role == 'assistant' and not m.tool_calls %}<|return|>{% else %}<|im_end|>{% endif %}"
    + "{% endfor %}"
    + PROMPT.replace("\n{%", "{%"),
    # channels: text beside a call is a message of its own, and one call a turn is written (gpt-oss)
    "channels": DECLARED
    + "{% for m in messages %}{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>{% elif m.tool_calls %}{% if m.content %}<|im_start|>assistant<|channel|>analysis<|message|>"
    "{{ m.content }}<|im_end|>{% endif %}{% set f = m.tool_calls[0].function %}<|im_start|>assistant to={{ f.name }}"
    "<|channel|>commentary<|message|>{{ f.arguments|tojson }}<|call|>{% else %}"
    "<|im_start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% else %}<|im_end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
    # the prompt has a block with nothing in it, and no turn has (Gemma 4, Command R7B)
    "closed block in the prompt": WRITTEN + END + PROMPT.replace("{% endif", "<|channel|>thought\n<|message|>{% endif"),
    # the answer follows the result in one message, before which the prompt alone writes a header (Apertus)
    "header in the prompt alone": DECLARED
    + "{% for m in messages %}{% if m.role == 'tool' %}[{{ m.content }}]{% else %}"
    "{% if m.role != 'assistant' or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>{{ m.role }}\n{% endif %}"
    "{{ m.content }}" + CALLED + "{{ '<|call|>' if m.tool_calls else '<|im_end|>' }}{% endif %}{% endfor %}" + PROMPT,
    # a result is closed by the prompt, and not where an answer follows it (Bielik)
    "result closed by the prompt": WRITTEN
    + "{% if m.role != 'tool' or loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
    + PROMPT,
    # the prompt opens a block that the template takes out of each turn (DeepSeek, Nemotron Nano v2)
    "block taken out": OPENED
    + "{{ m.content.split('</think>')[-1] }}"
    + CALLED
    + END
    + PROMPT.replace("{% endif", "<think>\n{% endif"),
    # the prompt begins the thought (Apriel 1.6)
    "thought begun": OPENED
    + "{% if m.reasoning_content and loop.last %}{{ m.reasoning_content }}\n[FINAL]\n{% endif %}{{ m.content }}"
    + CALLED
    + END
    + PROMPT.replace("{% endif", "Here are my steps:\n{% endif"),
    # the prompt's space is other than the turn's (Granite 20B)
    "other space": WRITTEN + END + PROMPT.replace("\n{%", " \n\n{%"),
    # tools stand before the last user's words (Mistral)
    "tools before the last user": _FIND_LAST_USER
    + "{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.index0 == ns.n %}[AVAILABLE_TOOLS]"
    "{{ tools|tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]"
    "{% else %}{{ m.content }}" + CALLED + "<|im_end|>{% endif %}{% endfor %}",
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>", "<|endoftext|>"]
UNFLAGGED = ["<tool_call>", "</tool_call>", "<think>", "</think>", "[INST]", "[/INST]"]  # added, with special = false


def make_tokenizer(template: str, special: list[str] = SPECIAL) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE that merges line ends; tokens of SPECIAL that are not in `special` are not flagged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    core.train_from_iterator(["a\n\nb\n\nIt is 23 degrees. get_weather assistant user Oslo\n\n"] * 50, trainer)
    flagged = [token for token in SPECIAL if token in special]
    core.add_special_tokens([AddedToken(token, special=True) for token in flagged])
    core.add_tokens([AddedToken(token, normalized=False) for token in [*SPECIAL, *UNFLAGGED] if token not in flagged])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    made.chat_template = template
    return made


def chat(*said: str, first: str = "user", **fields) -> Record:
    """Make a record in which two speakers take turns."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = [{"role": roles[at % 2], "content": content} for at, content in enumerate(said)]
    return parse_record({"id": "r", "messages": messages, **fields}, "x")


def rounds(number: int, *, result: str = "23 degrees", beside: str = "") -> Record:
    """Make a record of `number` rounds: a question, a call, its result, an answer."""
    messages: list[dict] = []
    for at in range(number):
        call = golden.call(f"call{at:05}", "get_weather", {"city": "Oslo"})
        messages += [
            {"role": "user", "content": f"Oslo, {at}?"},
            {"role": "assistant", "content": beside, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "name": "get_weather", "content": result},
            {"role": "assistant", "content": f"It is 23 degrees, {at}."},
        ]
    return parse_record({"id": "r", "messages": messages, "tools": [golden.tool("get_weather")]}, "x")
