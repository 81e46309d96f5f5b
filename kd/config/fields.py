"""Building blocks of the schema: the base of every section, text and numbers with their range, registered choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from kd.paths import expand_path

MOST_STEPS = 1_000_000_000


def _check_text(value: str) -> str:
    """Refuse text that can name nothing, or that no file could hold."""
    if not value.strip():
        raise PydanticCustomError("unusable_text", "must not be blank")
    if "\x00" in value:
        raise PydanticCustomError("unusable_text", "holds a NUL character, which no name or path can: remove it")
    return value


# Each key's own text says its range again, with the reason for the upper end.
Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_check_text)]


def _expand(text: str) -> str:
    try:
        return expand_path(text)
    except ValueError as error:
        raise PydanticCustomError("path", "{reason}", {"reason": str(error)}) from None


def split_address(url: str) -> SplitResult:
    """Split the address of a server. Raises ValueError (UnicodeError is one) where its host or port is none."""
    parts = urlsplit(url)
    if not (host := parts.hostname):
        raise ValueError("no host")
    host.encode("ascii" if ":" in host else "idna")
    _ = parts.port  # raises
    return parts


def _check_address(url: str) -> str:
    """Refuse an address that no server can have; it is not repeated, for it may hold a secret."""
    try:
        wrong = split_address(url).port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise PydanticCustomError(
            "address",
            "its host or port is none: write the host as a name, an IPv4 address or [IPv6], a port as 1 to 65535",
        )
    return url


Address = Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"), AfterValidator(_check_address)]
"""Address of a server: http or https, without user name, password or query."""
Place = Annotated[Text, AfterValidator(_expand)]
"""Path, or a hub id: `~` at its beginning is the home folder."""
Pair = tuple[Weight, Weight]
Dtype = Literal["auto", "bf16", "fp16", "fp32"]


class Section(BaseModel):
    """A mapping of the YAML: unknown keys are errors, no value is converted, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Choice:
    """Text that must be one of `names()`, with the error of a Literal: `Annotated[str, Choice(FORMATS.names)]`.

    `names` is called at each validation, so that a name that a user's module registered before it counts.

    own: text with this in it, not at an end, is the user's own and is taken as it is.
    """

    def __init__(self, names: Callable[[], Iterable[str]], *, own: str | None = None):
        self.names, self._own = names, own

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def _check(self, value: Any) -> str:
        names = tuple(self.names())
        if isinstance(value, str) and (value in names or self._own and self._own in value.strip(self._own)):
            return value
        quoted = [repr(name) for name in names]
        raise PydanticKnownError(
            "literal_error", {"expected": " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))}
        )
