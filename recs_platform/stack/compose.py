"""`python -m recs_platform.stack.compose FILE`: the passwords of docker-compose.yml, and how to reach it from this machine."""

from __future__ import annotations

import re
import secrets
import sys
from pathlib import Path

PASSWORDS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "RECS_API_TOKEN")

_TEMPLATE = """\
# Made by `make up-compose`. For docker compose:
POSTGRES_PASSWORD={POSTGRES_PASSWORD}
REDIS_PASSWORD={REDIS_PASSWORD}
RECS_API_TOKEN={RECS_API_TOKEN}
# For `recs` on this machine: the servers as it sees them …
RECS_ENGINE=risingwave
RECS_RISINGWAVE_URL=postgresql://root@127.0.0.1:4566/dev
RECS_KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9094
RECS_POSTGRES_URL=postgresql://recs:{POSTGRES_PASSWORD}@127.0.0.1:5432/shop
RECS_REDIS_URL=redis://:{REDIS_PASSWORD}@127.0.0.1:6379/0
RECS_DAGSTER_URL=http://127.0.0.1:3000
# … and as RisingWave does
RECS_RISINGWAVE_KAFKA=kafka:9092
RECS_RISINGWAVE_POSTGRES_URL=postgresql://recs:{POSTGRES_PASSWORD}@postgres:5432/shop
RECS_RISINGWAVE_REDIS_URL=redis://:{REDIS_PASSWORD}@redis:6379/0
"""


def write_environment(path: Path) -> None:
    """Writes the file, readable by its owner alone. What it says already stays: the volumes know the passwords, and the rest is yours."""
    before = path.read_text() if path.exists() else ""
    known = dict(re.findall(r"^\s*(?:export\s+)?(\w+)=(.*)$", before, re.MULTILINE))
    passwords = {name: known.get(name) or secrets.token_urlsafe(24) for name in PASSWORDS}
    lines = _TEMPLATE.format(**passwords).splitlines()
    missing = [line for line in lines if line.startswith("#") or line.partition("=")[0] not in known]
    if all(line.startswith("#") for line in missing):
        missing = []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text("".join(f"{line}\n" for line in [*before.splitlines(), *missing]))


if __name__ == "__main__":
    write_environment(Path(sys.argv[1]))
