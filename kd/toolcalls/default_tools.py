"""Default tools, for data that brings none: search, open, read, read a repository, write, execute."""

from __future__ import annotations


def _tool(name: str, description: str, required: list[str], **properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _string(description: str, **rules) -> dict:
    return {"type": "string", "description": description, **rules}


def _integer(description: str, **rules) -> dict:
    return {"type": "integer", "description": description, **rules}


DEFAULT_TOOLS: list[dict] = [
    _tool(
        "web.search",
        "Search the web and return titles, addresses and snippets.",
        ["q"],
        q=_string("What to search for.", minLength=1),
        top_k=_integer("How many results to return.", minimum=1, maximum=50),
        site=_string("Only results from this host, such as docs.python.org."),
    ),
    _tool(
        "web.open",
        "Open one web page and return its text.",
        ["url"],
        url=_string("Address of the page, with http:// or https://.", pattern="^https?://"),
        max_chars=_integer("Cut the text after this many characters.", minimum=1),
    ),
    _tool(
        "read_file",
        "Read a text file from the working folder.",
        ["path"],
        path=_string("Path relative to the working folder.", minLength=1),
        start_line=_integer("First line to return, counted from 1.", minimum=1),
        end_line=_integer("Last line to return, inclusive.", minimum=1),
        encoding=_string("Text encoding; utf-8 when left out."),
    ),
    _tool(
        "repo.read",
        "Read a file of a repository at a revision.",
        ["path"],
        path=_string("Path from the repository root.", minLength=1),
        repo=_string("Repository as owner/name; the current one when left out."),
        ref=_string("Branch, tag or commit."),
        start_line=_integer("First line to return, counted from 1.", minimum=1),
        end_line=_integer("Last line to return, inclusive.", minimum=1),
    ),
    _tool(
        "file.write",
        "Write text to a file in the working folder.",
        ["path", "content"],
        path=_string("Path relative to the working folder.", minLength=1),
        content=_string("The text to write."),
        mode=_string("Replace the file or add at its end.", enum=["overwrite", "append"]),
    ),
    _tool(
        "code.execute",
        "Run a piece of code in a sandbox and return what it printed.",
        ["language", "code"],
        language=_string("Language of the code.", enum=["python", "bash", "javascript"]),
        code=_string("The code to run.", minLength=1),
        timeout_s={"type": "number", "description": "Stop after this many seconds.", "exclusiveMinimum": 0},
    ),
]
