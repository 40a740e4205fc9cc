"""The stack, as `recs up`, `recs down` and `recs status` show it; mostly its servers, without engine and Dagster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import psutil
import psycopg
import pytest
import redis
from confluent_kafka.admin import AdminClient

from recs_platform import http_ask
from recs_platform.awaiting import wait_until
from recs_platform.errors import StackError
from recs_platform.settings import LOCAL, RISINGWAVE, Settings
from recs_platform.stack import process
from recs_platform.stack.parts import PARTS, chosen, services
from recs_platform.stack.postgres import cluster, postgres, prepare, remove_home
from recs_platform.stack.process import last_lines, marked, running
from recs_platform.stack.service import Service, free_port, is_free
from recs_platform.stack.state import PartState, StackState, State, load, save, secret, supervising, supervisor_pid

ONLY_SERVERS = ("--only", "postgres", "--only", "valkey", "--only", "broker")
COMMAND = "from recs_platform.commands import {module}; {module}.{command}()"
SECONDS = 40.0


class Stack:
    """A state directory, and `recs` run on it in processes of their own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def recs(self, command: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(command, arguments),
            env=self._environment(settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def foreground(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command("up", arguments),
            env=self._environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def up(self, *arguments: str, **settings: str) -> str:
        done = self.recs("up", "--detach", *(arguments or ONLY_SERVERS), **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def settings(self) -> Settings:
        return Settings.load({}, state_dir=self.state_dir)

    def part(self, name: str) -> PartState:
        state = load(self.state_dir)
        assert state is not None
        return next(part for part in state.parts if part.name == name)

    def pids(self) -> dict[str, int]:
        return {part: processes[0].pid for part, processes in marked(self.state_dir).items()}

    def kill(self, name: str) -> int:
        """kill -9 of a part's main process; returns once it is gone."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: self.pids().get(name) != pid, SECONDS)
        return pid

    def restarted(self, name: str, old: int) -> Callable[[], bool]:
        return lambda: self.part(name).state is State.HEALTHY and self.part(name).pid not in {old, None}

    def _command(self, command: str, arguments: tuple[str, ...]) -> list[str]:
        module = "status" if command == "status" else "stack"
        return [sys.executable, "-c", COMMAND.format(module=module, command=command), *arguments]

    def _environment(self, settings: dict[str, str]) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("RECS_")}
        return {**own, "RECS_STATE_DIR": str(self.state_dir), **settings}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that runs nothing yet, and nothing any more after the test."""
    found = Stack(tmp_path / "state")
    yield found
    found.recs("down")
    assert marked(found.state_dir) == {}
    _remove(found.state_dir)


@pytest.fixture(scope="module")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of the three servers, for tests that leave it healthy."""
    found = Stack(tmp_path_factory.mktemp("stack") / "state")
    found.up(RECS_SIMULATE_USERS="50")
    yield found
    found.recs("down")
    assert marked(found.state_dir) == {}
    _remove(found.state_dir)


# What comes up


def test_any_terminal_finds_the_endpoints_of_the_running_stack(running_stack: Stack) -> None:
    settings = running_stack.settings()
    with redis.Redis.from_url(settings.redis_url) as connection:
        assert connection.ping()
    with psycopg.connect(settings.postgres_url) as database:
        assert database.execute("SHOW wal_level").fetchone() == ("logical",)


def test_a_risingwave_of_ones_own_is_the_engine_of_all_commands_while_the_stack_runs(stack: Stack) -> None:
    refused = stack.recs("up", "--detach", "--engine", "risingwave")
    assert refused.returncode == 1
    assert "RECS_RISINGWAVE_URL is not set" in refused.stdout + refused.stderr
    url = "postgresql://root:rw-secret@127.0.0.1:1/dev"
    stack.up("--only", "valkey", "--only", "engine", "--engine", "risingwave", "--risingwave-url", url)
    assert (stack.settings().engine, stack.settings().risingwave_url) == (RISINGWAVE, url)
    assert Settings.load({"RECS_ENGINE": "local"}, state_dir=stack.state_dir).engine == LOCAL, "what is set counts more"
    state = load(stack.state_dir)
    assert state is not None
    assert [part.name for part in state.parts] == ["valkey"]
    stack.recs("down")
    assert stack.settings().engine == LOCAL


def test_topics_and_a_made_up_catalog_are_there_from_the_start(running_stack: Stack) -> None:
    settings = running_stack.settings()
    assert _topics(settings) >= {"user_activity", "purchases"}
    with psycopg.connect(settings.postgres_url) as database:
        assert database.execute("SELECT count(*) > 0 FROM product_catalog").fetchone() == (True,)
        assert database.execute("SELECT count(*) FROM customers").fetchone() == (50,)


def test_status_shows_every_part_and_says_healthy_with_exit_code_0(running_stack: Stack) -> None:
    done = running_stack.recs("status", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["healthy"]) == (0, True)
    assert {part["name"]: part["state"] for part in found["parts"]} == dict.fromkeys(
        ("postgres", "valkey", "broker"), "healthy"
    )
    assert all(part["memory_bytes"] > 0 for part in found["parts"])
    assert "postgres" in running_stack.recs("status").stdout


def test_a_second_up_finds_the_first(running_stack: Stack) -> None:
    before = running_stack.pids()
    assert "Found a stack running" in running_stack.up()
    assert running_stack.pids() == before


@pytest.mark.parametrize("kept", ["postgres.password", "valkey.password", "valkey.reader.password"])
def test_a_password_is_in_no_file_others_may_read_and_on_no_command_line(running_stack: Stack, kept: str) -> None:
    password = (running_stack.state_dir / kept).read_text()
    assert len(password) >= 32
    shown = running_stack.recs("status").stdout + running_stack.recs("status", "--json").stdout
    assert password not in shown
    for file in [*running_stack.state_dir.glob("*.json"), *(running_stack.state_dir / "logs").iterdir()]:
        assert password not in file.read_text() or file.stat().st_mode & 0o077 == 0
    for pid in running_stack.pids().values():
        assert password not in " ".join(psutil.Process(pid).cmdline())


def test_redis_lets_nobody_in_without_a_password_and_readers_only_read(running_stack: Stack) -> None:
    settings = running_stack.settings()
    with redis.Redis.from_url(settings.redis_url) as writer:
        writer.set("recs:x", "1")
        writer.set("other", "1")
    with (
        redis.Redis.from_url(f"redis://{settings.redis_url.rpartition('@')[2]}") as nobody,
        pytest.raises(redis.AuthenticationError),
    ):
        nobody.get("recs:x")
    with redis.Redis.from_url(settings.require_reader()) as reader:
        assert reader.mget(["recs:x"]) == [b"1"]
        assert list(reader.scan_iter(match="recs:x*")) == [b"recs:x"]
        for refused in (
            lambda: reader.set("recs:x", "2"),
            lambda: reader.get("other"),
            lambda: reader.flushall(),
            lambda: reader.config_get("requirepass"),
            lambda: reader.client_kill("127.0.0.1:1"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                refused()


# What dies comes back


def test_a_killed_valkey_comes_back_on_its_port_with_its_data(running_stack: Stack) -> None:
    url = running_stack.settings().redis_url
    with redis.Redis.from_url(url) as connection:
        connection.set("kept", "yes")
        assert connection.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1, (
            "on disk: it answers before, while the disk is slow"
        )
    before = running_stack.part("valkey").restarts
    old = running_stack.kill("valkey")
    assert wait_until(running_stack.restarted("valkey", old), SECONDS)
    with redis.Redis.from_url(url) as connection:
        assert connection.get("kept") == b"yes"
    assert running_stack.part("valkey").restarts == before + 1


def test_a_part_that_stands_still_is_killed_and_started_again(stack: Stack) -> None:
    stack.up("--only", "valkey", RECS_RESTART_HUNG_SECONDS="1")
    old = stack.pids()["valkey"]
    os.kill(old, signal.SIGSTOP)
    assert wait_until(stack.restarted("valkey", old), SECONDS)
    assert stack.part("valkey").restarts == 1
    with redis.Redis.from_url(stack.settings().redis_url) as connection:
        assert connection.ping()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One of 220 MB, where this may be made."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=220m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be made here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_engine_alone_and_all_is_well_when_there_is_room_again(small_disk: Path) -> None:
    stack = Stack(small_disk / "state")
    try:
        stack.up(*ONLY_SERVERS, "--only", "engine", "--only", "simulator", RECS_SIMULATE_USERS="50")
        old = stack.pids()["engine"]
        full = os.open(small_disk / "full", os.O_CREAT | os.O_WRONLY)
        with suppress(OSError):
            while True:
                os.write(full, bytes(4096))
        os.close(full)
        assert wait_until(lambda: old not in stack.pids().values(), SECONDS)
        status = stack.recs("status")
        assert status.returncode == 1
        assert " MB are free where the state lies" in status.stdout  # some, where the engine has given up what it had
        assert {"supervisor", "postgres", "valkey", "broker", "simulator"} <= stack.pids().keys()
        (small_disk / "full").unlink()
        assert wait_until(stack.restarted("engine", old), SECONDS)
        assert "Traceback" not in (stack.state_dir / "logs" / "engine.previous.log").read_text()
    finally:
        stack.recs("down")
        _remove(stack.state_dir)


def test_a_killed_broker_comes_back_with_its_topics(running_stack: Stack) -> None:
    old = running_stack.kill("broker")
    assert wait_until(running_stack.restarted("broker", old), SECONDS)
    assert _topics(running_stack.settings()) >= {"user_activity", "purchases"}


def test_a_killed_postgres_comes_back_with_its_data_and_slots(running_stack: Stack) -> None:
    url = running_stack.settings().postgres_url
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("SELECT pg_create_logical_replication_slot('kept', 'pgoutput')")
        database.execute("UPDATE product_catalog SET name = 'kept' WHERE product_id = 'product_1'")
    try:
        old = running_stack.kill("postgres")
        assert wait_until(running_stack.restarted("postgres", old), SECONDS)
        with psycopg.connect(url, autocommit=True) as database:
            assert database.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == [("kept",)]
            name = database.execute("SELECT name FROM product_catalog WHERE product_id = 'product_1'").fetchone()
        assert name == ("kept",)
    finally:
        with psycopg.connect(url, autocommit=True) as database:
            database.execute("SELECT pg_drop_replication_slot('kept')")


def test_a_part_that_hangs_is_shown_as_unhealthy_and_recovers(running_stack: Stack) -> None:
    pid = running_stack.pids()["valkey"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: running_stack.part("valkey").state is State.UNHEALTHY, SECONDS)
        assert running_stack.recs("status").returncode == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert wait_until(lambda: running_stack.part("valkey").state is State.HEALTHY, SECONDS)


def test_a_killed_supervisor_harms_no_part_and_the_next_up_takes_them_over(running_stack: Stack) -> None:
    before = running_stack.pids()
    running_stack.kill("supervisor")
    told = running_stack.recs("status")
    assert (told.returncode, "`recs up` takes them over" in told.stdout) == (1, True)
    assert "Starting" in running_stack.up()
    after = running_stack.pids()
    assert after.pop("supervisor") != before.pop("supervisor")
    assert after == before
    old = running_stack.kill("valkey")  # and it looks after what it did not start
    assert wait_until(running_stack.restarted("valkey", old), SECONDS)


# Going down


def test_down_leaves_no_process_and_keeps_data_and_ports(stack: Stack) -> None:
    stack.up("--only", "valkey", "--only", "postgres")
    before = stack.settings()
    with redis.Redis.from_url(before.redis_url) as connection:
        connection.set("kept", "yes")
    assert stack.recs("down").returncode == 0
    assert marked(stack.state_dir) == {}
    assert stack.settings().endpoints() == {}
    stack.up("--only", "valkey", "--only", "postgres")
    assert stack.settings() == before
    with redis.Redis.from_url(before.redis_url) as connection:
        assert connection.get("kept") == b"yes"


def test_down_also_stops_what_a_killed_supervisor_left_behind(stack: Stack) -> None:
    stack.up()
    stack.kill("supervisor")
    assert "Stopped" in stack.recs("down").stdout
    assert marked(stack.state_dir) == {}


def test_down_with_nothing_running_is_no_error(stack: Stack) -> None:
    done = stack.recs("down")
    assert (done.returncode, done.stdout) == (0, "Nothing was running.\n")


def test_status_with_nothing_running_says_how_to_start(stack: Stack) -> None:
    done = stack.recs("status")
    assert (done.returncode, "`recs up` starts one" in done.stdout) == (1, True)
    assert json.loads(stack.recs("status", "--json").stdout)["healthy"] is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_stops_everything(stack: Stack, number: signal.Signals) -> None:
    foreground = stack.foreground("--only", "valkey")
    assert "All healthy" in _read_until(foreground, "All healthy")
    foreground.send_signal(number)
    assert "Stopped." in foreground.communicate(timeout=SECONDS)[0]
    assert (foreground.returncode, marked(stack.state_dir)) == (0, {})


def test_ctrl_c_while_it_still_comes_up_stops_everything(stack: Stack) -> None:
    foreground = stack.foreground(*ONLY_SERVERS)
    _read_until(foreground, "Starting")
    foreground.send_signal(signal.SIGINT)
    foreground.communicate(timeout=SECONDS)
    assert marked(stack.state_dir) == {}


def test_ctrl_c_of_an_up_that_found_the_stack_leaves_it_running(stack: Stack) -> None:
    stack.up("--only", "valkey")
    before = stack.pids()
    second = stack.foreground("--only", "valkey")
    _read_until(second, "All healthy")
    second.send_signal(signal.SIGINT)
    assert "The stack goes on" in second.communicate(timeout=SECONDS)[0]
    assert stack.pids() == before


def test_a_foreground_up_replaces_a_killed_supervisor_and_ends_with_the_stack(stack: Stack) -> None:
    foreground = stack.foreground("--only", "valkey")
    _read_until(foreground, "All healthy")
    before = stack.pids()
    stack.kill("supervisor")
    assert wait_until(lambda: "supervisor" in stack.pids() and supervisor_pid(stack.state_dir) is not None, SECONDS)
    assert stack.pids()["valkey"] == before["valkey"]
    assert stack.recs("down").returncode == 0
    foreground.communicate(timeout=SECONDS)
    assert foreground.returncode == 0


# One's own services, ports, and what goes wrong


def test_a_service_of_ones_own_is_used_and_not_started(stack: Stack, redis_url: str) -> None:
    stack.up("--only", "valkey", "--only", "broker", RECS_REDIS_URL=redis_url)
    part = stack.part("valkey")
    assert (part.yours, part.pid, part.state, part.url) == (True, None, State.HEALTHY, redis_url)
    assert set(stack.pids()) == {"supervisor", "broker"}
    assert stack.settings().redis_url == redis_url


def test_a_service_of_ones_own_that_does_not_answer_is_named(stack: Stack) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    done = stack.recs("up", "--detach", "--only", "valkey", "--timeout", "1", RECS_REDIS_URL=url)
    assert done.returncode == 1
    assert "valkey is starting: Redis at redis://:***@127.0.0.1" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_a_wanted_port_is_used(stack: Stack) -> None:
    port = free_port()
    stack.up("--only", "valkey", RECS_REDIS_PORT=str(port))
    assert stack.settings().redis_url.endswith(f"@127.0.0.1:{port}/0")


def test_a_wanted_port_that_is_taken_is_named_with_its_setting(stack: Stack, valkey_url: str) -> None:
    port = valkey_url.rpartition(":")[2].removesuffix("/0")
    done = stack.recs("up", "--detach", "--only", "valkey", RECS_REDIS_PORT=port)
    assert (done.returncode, f"RECS_REDIS_PORT={port}: the port is taken" in done.stderr) == (1, True)


def test_a_part_that_dies_again_and_again_fails_the_start_with_the_end_of_its_log(stack: Stack) -> None:
    manifest = stack.state_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("this is no manifest\n")
    done = stack.recs("up", "--detach", "--only", "valkey")
    assert done.returncode == 1
    assert "valkey is failing: ended (exit code 1)" in done.stderr
    assert "this is no manifest" in done.stderr


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(StackError, match="no such part: redis; there are postgres, valkey"):
        chosen(["redis"])


# The pieces


def test_the_parts_of_a_whole_stack_in_the_order_of_starting(tmp_path: Path) -> None:
    settings, found = services(Settings(state_dir=tmp_path), PARTS, {})
    assert tuple(service.name for service in found) == PARTS
    assert settings.endpoints().keys() == {
        "kafka_bootstrap_servers",
        "postgres_url",
        "redis_url",
        "redis_reader_url",
        "engine_url",
        "engine_token",
        "api_url",
        "dagster_url",
    }
    engine = next(service for service in found if service.name == "engine")
    assert engine.needs == ("postgres", "valkey", "broker")
    assert Settings.load(engine.environment) == settings


def test_an_engine_of_yours_is_not_started_and_has_no_address_here(tmp_path: Path) -> None:
    settings, found = services(Settings(state_dir=tmp_path, engine="risingwave"), PARTS, {})
    assert "engine" not in {service.name for service in found}
    assert not settings.engine_url
    assert all("engine" not in service.needs for service in found)


def test_a_rate_of_0_means_no_simulated_shoppers(tmp_path: Path) -> None:
    _, found = services(Settings(state_dir=tmp_path, simulate_rate=0), PARTS, {})
    assert "simulator" not in [service.name for service in found]


def test_a_part_gets_the_port_it_had_before_when_that_is_free(tmp_path: Path, valkey_url: str) -> None:
    taken, port = int(valkey_url.rpartition(":")[2].removesuffix("/0")), free_port()
    settings, _ = services(Settings(state_dir=tmp_path), ["valkey", "broker"], {"valkey": taken, "broker": port})
    assert settings.kafka_bootstrap_servers == f"127.0.0.1:{port}"
    assert not settings.redis_url.endswith(f":{taken}/0")
    assert not is_free(taken)


def test_only_one_supervisor_at_a_time(tmp_path: Path) -> None:
    assert supervisor_pid(tmp_path) is None
    with supervising(tmp_path) as first, supervising(tmp_path) as second:
        assert (first, second) == (True, False)
        assert supervisor_pid(tmp_path) == os.getpid()
    assert supervisor_pid(tmp_path) is None


def test_the_state_is_read_as_it_was_written_and_anything_else_as_none(tmp_path: Path) -> None:
    state = StackState(State.HEALTHY, 1, "2026-01-01T00:00:00+00:00", parts=[PartState("valkey", State.HEALTHY)])
    save(tmp_path, state)
    assert load(tmp_path) == state
    (tmp_path / "stack.json").write_text('{"parts": [{"name": "valkey"}]}')
    assert load(tmp_path) is None


def test_a_service_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    service = Service("crashing", _never_answers, command=("/bin/sh", "-c", "echo what went wrong; exit 3"))
    with pytest.raises(StackError, match="what went wrong"), running(service, tmp_path):
        pytest.fail("it never answered")


def test_what_a_killed_part_leaves_behind_is_found_and_ended_but_not_taken_for_the_part(tmp_path: Path) -> None:
    service = Service("parent", lambda: None, command=("/bin/sh", "-c", "sleep 100 & wait"))
    parent = process.start(service, tmp_path / "parent.log", tmp_path)
    assert wait_until(lambda: len(marked(tmp_path).get("parent", [])) == 2, SECONDS)
    assert process.main_process(marked(tmp_path)["parent"]) is not None
    process.stop(parent, "parent")
    assert process.main_process(marked(tmp_path)["parent"]) is None
    process.stop_everything(tmp_path, PARTS)
    assert marked(tmp_path) == {}


def test_a_log_is_turned_over_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"first\n")
        process.turn_over(log)
        writer.write(b"second\n")
    assert (log.read_text(), (tmp_path / "part.previous.log").read_text()) == ("second\n", "first\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as another user")
def test_root_runs_postgres_as_nobody_even_from_places_nobody_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recs_platform.stack.postgres.reachable", lambda _: False)  # as in a clone under /root
    found = cluster(tmp_path)
    try:
        with running(postgres(found, free_port()), tmp_path) as server:
            assert psutil.Process(server.pid).username() == "nobody"
            assert tmp_path not in found.home.parents
            assert found.home in found.programs.parents
        (tmp_path / "postgres.password").unlink()  # as when the state directory is deleted, and that place is not
        os.utime(found.data / "PG_VERSION", (0, 0))
        with running(postgres(cluster(tmp_path), free_port()), tmp_path):
            assert (found.home / "data.old").is_dir()
    finally:
        remove_home(tmp_path)
    assert not found.home.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as another user")
def test_root_gives_away_nothing_that_somebody_has_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "precious")
    monkeypatch.setattr("recs_platform.stack.postgres.postgres_home", lambda _: tmp_path / "home")
    with pytest.raises(StackError, match="belongs to someone else"):
        prepare(cluster(tmp_path))
    assert (tmp_path / "precious").stat().st_uid == 0


def test_an_api_is_asked_where_it_listens(tmp_path: Path) -> None:
    for host, reached in (
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("10.0.0.7", "10.0.0.7"),
    ):
        settings = Settings(state_dir=tmp_path, redis_url="redis://127.0.0.1:1/0", api_host=host, api_port=0)
        found, (_, api) = services(settings, ["valkey", "api"], {})
        assert found.api_url.startswith(f"http://{reached}:")
        assert api.url == found.api_url


def test_a_proxy_is_not_for_servers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        monkeypatch.delenv("no_proxy", raising=False)
        with http_ask.ask(f"http://127.0.0.1:{server.server_port}/", 10) as answer:
            assert answer.status == 200


def _never_answers() -> None:
    raise StackError("nobody there")


def _topics(settings: Settings) -> set[str]:
    return set(AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers}).list_topics(timeout=5).topics)


def _read_until(foreground: subprocess.Popen[str], wanted: str) -> str:
    assert foreground.stdout is not None
    read = ""
    while wanted not in read:
        line = foreground.stdout.readline()
        assert line, f"{wanted!r} was never said:\n{read}"
        read += line
    return read


def _remove(state_dir: Path) -> None:
    """Run by root, the cluster lies outside pytest's directory."""
    with suppress(StackError):
        shutil.rmtree(cluster(state_dir).home, ignore_errors=True)


def test_the_end_of_a_log_is_told_without_its_colours(tmp_path: Path) -> None:
    log = tmp_path / "broker.log"
    log.write_text("begun\n\x1b[2m2026-11-27\x1b[0m \x1b[31mERROR\x1b[0m no such topic\n")
    assert last_lines(log, 1) == "2026-11-27 ERROR no such topic"
    assert last_lines(tmp_path / "none.log") == ""


def test_a_secret_is_made_once_and_is_never_empty(tmp_path: Path) -> None:
    """A kill or a full disk may leave the file without what was to be in it."""
    made = secret(tmp_path, "engine.token")
    assert len(made) > 20
    assert secret(tmp_path, "engine.token") == made
    (tmp_path / "engine.token").write_text("")
    assert len(secret(tmp_path, "engine.token")) > 20
    assert (tmp_path / "engine.token").stat().st_mode & 0o077 == 0
