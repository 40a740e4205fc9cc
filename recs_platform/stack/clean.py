"""`python -m recs_platform.stack.clean`: removes what a stopped stack keeps outside its state directory."""

from __future__ import annotations

from recs_platform.settings import Settings
from recs_platform.stack.postgres import remove_home

if __name__ == "__main__":
    remove_home(Settings.load().state_dir)
