"""Where the servers lie that come as wheels, found without importing their packages (which have side effects)."""

from __future__ import annotations

import importlib.util
import stat
from pathlib import Path

from recs_platform.errors import StackError


def package_directory(package: str) -> Path:
    """The directory of an installed package; `StackError` with the remedy when it is not installed."""
    found = importlib.util.find_spec(package)
    locations = list(found.submodule_search_locations or []) if found else []
    if not locations:
        raise StackError(f"the Python package {package} is not installed: `make install` installs what the stack needs")
    return Path(locations[0])


def executable(package: str, pattern: str) -> Path:
    """The one file in `package` that matches `pattern`, made executable where the installer did not.

    Raises `StackError` when the wheel has none, as on a platform it does not support.
    """
    for path in package_directory(package).glob(pattern):
        mode = path.stat().st_mode
        if not mode & stat.S_IXUSR:
            path.chmod(mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return path
    program = Path(pattern).name
    raise StackError(f"{package} has no {program} for this platform: use a service of your own, by its URL")
