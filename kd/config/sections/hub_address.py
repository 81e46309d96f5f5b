"""Address of a split of a data set on the Hugging Face Hub, which stands wherever a file of records may.

    hub:org/name                                         its split `train`
    hub:org/name?split=test&config=multi&revision=v2     another split, of a configuration, at a commit, tag or branch

The YAML has it as a mapping, {dataset: org/name, split: test}.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from kd.config.fields import Place

SCHEME = "hub:"
KEYS = ("split", "config", "revision")
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # it names a folder of copies too: no ..


class HubDataset(NamedTuple):
    """Split of a data set."""

    name: str  # org/name
    split: str = "train"
    config: str | None = None
    revision: str | None = None

    def address(self) -> str:
        """Write it as an address; what is as by default is left out."""
        split = None if self.split == "train" else self.split
        asked = {"split": split, "config": self.config, "revision": self.revision}
        query = urlencode({key: value for key, value in asked.items() if value is not None})
        return f"{SCHEME}{self.name}{'?' if query else ''}{query}"


def parse_address(text: str) -> HubDataset:
    """Read an address.

    Raises:
        ValueError: it has no org/name, or a key that is none of KEYS, or one twice or blank.
    """
    name, _, query = text.removeprefix(SCHEME).partition("?")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text}: a data set is org/name, as in {SCHEME}org/name?split=train")
    pairs = parse_qsl(query, keep_blank_values=True)
    if query and not pairs:
        raise ValueError(f"{text}: after ? come key=value pairs, as in split=test&revision=main")
    for key, value in pairs:
        if key not in KEYS:
            raise ValueError(f"{text}: {key!r} is none of {', '.join(KEYS)}")
        if not value.strip() or sum(key == other for other, _ in pairs) > 1:
            raise ValueError(f"{text}: {key} has one value, and no blank one")
    return HubDataset(name, **dict(pairs))


def make_address(value: Any) -> Any:
    """Write a mapping {dataset, split, config, revision} as an address, and check one; return all else as it is."""
    if isinstance(value, str) and value.startswith(SCHEME):
        try:
            return parse_address(value).address()
        except ValueError as error:
            raise PydanticCustomError("hub_address", "{reason}", {"reason": str(error)}) from None
    if not isinstance(value, dict):
        return value
    extra = [key for key in value if key not in ("dataset", *KEYS)]
    if extra or not all(isinstance(one, str) for one in value.values()) or "dataset" not in value:
        raise PydanticCustomError(
            "hub_address",
            "a data set of the hub is {dataset: org/name}, with split, config and revision where they are needed, "
            "each a text",
        )
    parts = {key: value[key] for key in KEYS if key in value}
    return make_address(HubDataset(value["dataset"], **parts).address())


Records = Annotated[Place, BeforeValidator(make_address)]
"""File of records, or the address of a data set; a mapping becomes one."""
