"""The engine without its point: the same SQL, every view computed anew as a whole whenever it has anything to show.

Events are still parsed once and kept; what is computed anew is everything over them.

`python -m bench.baselines.full_engine`, with the settings of an engine.
"""

from __future__ import annotations

import sys

from recs_platform.engines.local import relations
from recs_platform.engines.local.__main__ import main
from recs_platform.engines.local.incremental import Mode
from recs_platform.engines.local.refresh import Refresher

INCREMENTAL = {Mode.LINEAR, Mode.ADDITIVE, Mode.TOP, Mode.KEYED}


class FullRefresher(Refresher):
    """Recomputes its relation as a whole whenever anything it reads has changed."""

    @property
    def mode(self) -> Mode:
        found = super().mode
        return Mode.FULL if found in INCREMENTAL else found


def recompute_all() -> None:
    """Of every pipeline that is deployed in this process from now on."""
    vars(relations)["Refresher"] = FullRefresher


if __name__ == "__main__":
    recompute_all()
    sys.exit(main())
