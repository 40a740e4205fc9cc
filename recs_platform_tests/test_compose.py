"""docker-compose.yml, as far as it can be held to its word without a Docker daemon."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from recs_platform.settings import Settings
from recs_platform.stack.compose import PASSWORDS, write_environment

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_stays_on_loopback_and_keeps_what_it_is_told(name: str) -> None:
    service = COMPOSE["services"][name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "it is open to the network"
    assert "healthcheck" in service
    assert service["restart"] == "unless-stopped"
    sources = [volume.split(":")[0] for volume in service["volumes"]]
    assert {source for source in sources if not source.startswith("./")} <= set(COMPOSE["volumes"])
    assert all((ROOT / source).exists() for source in sources if source.startswith("./"))
    assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])


def test_versions_are_pinned_and_go_together() -> None:
    images = {name: service["image"] for name, service in COMPOSE["services"].items() if "build" not in service}
    assert all(":" in image and not image.endswith(":latest") for image in images.values())
    assert images["postgres"].startswith("postgres:17"), "RisingWave 2.8 reads no later one"


def test_there_is_no_default_password() -> None:
    variables = set(re.findall(r"\$\{(\w+)", TEXT))
    assert variables == set(PASSWORDS)
    assert ":-" not in TEXT, "a variable with a default"
    for name in PASSWORDS:
        assert f"${{{name}:?" in TEXT, "compose refuses to start without it"


def test_its_environment_names_settings() -> None:
    known = {field.metadata["variable"] for field in Settings.__dataclass_fields__.values()}
    given = {name for name in COMPOSE["x-platform"]["environment"] if name.startswith("RECS_")}
    assert given <= known


def test_the_passwords_are_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    write_environment(path)
    first = path.read_text()
    write_environment(path)
    assert path.read_text() == first, "the volumes know the passwords"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = dict(re.findall(r"^(\w+)=(.*)$", first, re.MULTILINE))
    assert len({found[name] for name in PASSWORDS}) == len(PASSWORDS)
    assert all(len(found[name]) >= 32 for name in PASSWORDS)


def test_what_the_file_says_already_stays(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nAWS_SECRET=mine\nRECS_CATALOG=upserts\nRECS_REDIS_URL=redis://elsewhere:6379/0\n")
    path.chmod(0o644)
    write_environment(path)
    text = path.read_text()
    assert text.startswith("# mine\nAWS_SECRET=mine\nRECS_CATALOG=upserts\n")
    assert text.count("RECS_REDIS_URL=") == 1
    assert set(PASSWORDS) <= set(re.findall(r"^(\w+)=", text, re.MULTILINE))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_those_who_look_find_dagster_and_what_another_has_seen() -> None:
    for name in ("api", "dagster-webserver", "dagster-daemon"):
        service = COMPOSE["services"][name]
        assert "state:/app/.recs" in service["volumes"]
        assert service["environment"]["RECS_DAGSTER_URL"] == "http://dagster-webserver:3000"


def test_what_it_writes_is_what_recs_reads(tmp_path: Path) -> None:
    write_environment(tmp_path / ".env")
    found = dict(re.findall(r"^(\w+)=(.*)$", (tmp_path / ".env").read_text(), re.MULTILINE))
    settings = Settings.load(found, state_dir=tmp_path)
    assert settings.engine == "risingwave"
    assert settings.seen_by_risingwave().sql_variables()["postgres_password"] == found["POSTGRES_PASSWORD"]
    ports = {port.split(":")[1] for service in COMPOSE["services"].values() for port in service.get("ports", [])}
    for url in (settings.risingwave_url, settings.postgres_url, settings.kafka_bootstrap_servers):
        assert re.search(r":(\d+)(?:/|$)", url).group(1) in ports  # type: ignore[union-attr]


def test_dagsters_instance_is_ours_with_another_storage() -> None:
    ours = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    theirs = yaml.safe_load((ROOT / "docker" / "dagster.yaml").read_text())
    assert theirs.pop("storage") == {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}
    assert theirs == ours


def test_the_image_gets_what_it_copies() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    allowed = (ROOT / ".dockerignore").read_text().split()
    assert all((ROOT / source).exists() and f"!{source}" in allowed for source in sources)
