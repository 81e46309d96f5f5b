"""Scrubbing of records: secrets by the patterns of detect-secrets, telephone numbers by phonenumbers, e-mail addresses.

Each becomes a placeholder such as [EMAIL], in texts, results and arguments alike, so that a value that is carried from
one to another stays equal. Entropy is not looked at: it takes every id for a secret.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from kd.generation.prompts.duplicates import LibraryMissing

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)
_PLUGINS = (
    "aws:AWSKeyDetector",
    "azure_storage_key:AzureStorageKeyDetector",
    "basic_auth:BasicAuthDetector",
    "discord:DiscordBotTokenDetector",
    "github_token:GitHubTokenDetector",
    "gitlab_token:GitLabTokenDetector",
    "jwt:JwtTokenDetector",
    "mailchimp:MailchimpDetector",
    "npm:NpmDetector",
    "openai:OpenAIDetector",
    "pypi_token:PypiTokenDetector",
    "sendgrid:SendGridDetector",
    "slack:SlackDetector",
    "square_oauth:SquareOAuthDetector",
    "stripe:StripeDetector",
    "twilio:TwilioKeyDetector",
)


class Scrubber:
    """Scrubber of records. Raises LibraryMissing where its libraries are not there."""

    def __init__(self) -> None:
        try:
            import importlib

            import phonenumbers  # pyright: ignore[reportMissingImports]

            named = [one.split(":") for one in _PLUGINS]
            plugins = [
                getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name) for module, name in named
            ]
        except ImportError as error:
            raise LibraryMissing(
                f"answers.scrub: needs {error.name}, which is not installed: pip install 'spanwise[generate]'"
            ) from None
        self._phones = phonenumbers
        self._secrets = [_KEY_BLOCK, *(pattern for plugin in plugins for pattern in plugin.denylist)]

    def scrub(self, value: Any, counts: Counter[str]) -> Any:
        """Return a JSON value whose texts are scrubbed, keys aside; what is found is counted."""
        if isinstance(value, str):
            return self._scrub_text(value, counts)
        if isinstance(value, dict):
            return {key: self.scrub(inner, counts) for key, inner in value.items()}
        return [self.scrub(inner, counts) for inner in value] if isinstance(value, list) else value

    def _scrub_text(self, text: str, counts: Counter[str]) -> str:
        for pattern in self._secrets:
            text, num = pattern.subn("[SECRET]", text)
            counts["secrets"] += num
        text, num = _EMAIL.subn("[EMAIL]", text)
        counts["emails"] += num
        if sum(char.isdigit() for char in text) < 7:
            return text
        found = list(self._phones.PhoneNumberMatcher(text, None))
        for one in reversed(found):
            text = f"{text[: one.start]}[PHONE]{text[one.end :]}"
        counts["phones"] += len(found)
        return text
