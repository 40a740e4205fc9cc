"""`python -m recs_platform.stack.compose FILE`: the passwords of docker-compose.yml, and how to reach it from this machine."""

from __future__ import annotations

import re
import secrets
import sys
from pathlib import Path

PASSWORDS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "RECS_API_TOKEN")

_TEMPLATE = """\
# Made by `make up-compose`, once. For docker compose:
POSTGRES_PASSWORD={POSTGRES_PASSWORD}
REDIS_PASSWORD={REDIS_PASSWORD}
RECS_API_TOKEN={RECS_API_TOKEN}
# For `recs` on this machine: the servers as it sees them …
RECS_ENGINE=risingwave
RECS_RISINGWAVE_URL=postgresql://root@127.0.0.1:4566/dev
RECS_KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9094
RECS_POSTGRES_URL=postgresql://recs:{POSTGRES_PASSWORD}@127.0.0.1:5432/shop
RECS_REDIS_URL=redis://:{REDIS_PASSWORD}@127.0.0.1:6379/0
# … and as RisingWave does
RECS_RISINGWAVE_KAFKA=kafka:9092
RECS_RISINGWAVE_POSTGRES_URL=postgresql://recs:{POSTGRES_PASSWORD}@postgres:5432/shop
RECS_RISINGWAVE_REDIS_URL=redis://:{REDIS_PASSWORD}@redis:6379/0
"""


def write_environment(path: Path) -> None:
    """Writes the file, readable by its owner alone; passwords that it has already stay: the volumes know them."""
    known = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)) if path.exists() else {}
    passwords = {name: known.get(name) or secrets.token_urlsafe(24) for name in PASSWORDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(_TEMPLATE.format(**passwords))


if __name__ == "__main__":
    write_environment(Path(sys.argv[1]))
