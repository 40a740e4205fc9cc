"""RisingWave keeps passwords in clear text in its definitions and repeats them in errors: nobody is to see them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from recs_platform.settings import Settings, passwords_of

_SECRET_OPTION = re.compile(
    r"((?:password|secret|token)[\w.]*\"?\s*[:=]\s*)(?:'(?:[^']|'')*'|\"[^\"]*\"|[^\s,)'\"]+)", re.IGNORECASE
)
# up to the last @ there is: a password may hold one
_URL_PASSWORD = re.compile(r"(://[^:/@\s'\"]*:)[^\s'\"]+(?=@)")
_TELLING = 8  # a password that short is a word like any other: it is masked where it stands as one, and nowhere else


def without_secrets(text: str, secrets: Sequence[str]) -> str:
    """The text with every option that sounds like a secret, every password of a URL, and every known one as `***`."""
    for secret in secrets:  # before anything cuts one of them short
        if len(secret) >= _TELLING:
            text = text.replace(secret.replace("'", "''"), "***").replace(secret, "***")
    return _URL_PASSWORD.sub(r"\1***", _SECRET_OPTION.sub(r"\1'***'", text))


def secrets_of(settings: Settings) -> list[str]:
    """Every password that a statement or a message may hold, the longest first."""
    urls = [settings.postgres_url, settings.redis_url, settings.risingwave_url, settings.kafka_bootstrap_servers]
    urls += [settings.risingwave_postgres_url, settings.risingwave_redis_url, settings.risingwave_kafka]
    return sorted(set[str]().union(*map(passwords_of, urls)), key=len, reverse=True)
