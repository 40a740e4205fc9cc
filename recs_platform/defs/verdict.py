"""What a check says, as the result of a run and as the evaluation of a sensor, and which of these a sensor writes down: those
that say something else than was said last, and now and then the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

Metadata = Mapping[str, dg.MetadataValue[Any]]


@dataclass(frozen=True)
class Verdict:
    """Of one check of one asset. `said`: what makes it news when it changes, beside whether it passed."""

    asset: dg.AssetKey
    check: str
    passed: bool
    description: str | None = None
    metadata: Metadata = field(default_factory=dict)
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    said: object = None

    @property
    def key(self) -> dg.AssetCheckKey:
        return dg.AssetCheckKey(self.asset, self.check)

    def result(self) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            passed=self.passed,
            asset_key=self.asset,
            check_name=self.check,
            metadata=self.metadata,
            severity=self.severity,
            description=self.description,
        )

    def evaluation(self) -> dg.AssetCheckEvaluation:
        return dg.AssetCheckEvaluation(
            asset_key=self.asset,
            check_name=self.check,
            passed=self.passed,
            metadata=self.metadata,
            severity=self.severity,
            description=self.description,
        )


class News:
    """What was said last of each check. Kept in a sensor's cursor."""

    def __init__(self, told: dict[str, str] | None = None) -> None:
        self._told = dict(told or {})

    @classmethod
    def load(cls, text: str | None) -> News:
        """What `dump` gave; nothing where it cannot be read, which costs one evaluation of each."""
        try:
            found = json.loads(text or "{}")
        except ValueError:
            return cls()
        return cls({name: str(told) for name, told in found.items()}) if isinstance(found, dict) else cls()

    def dump(self) -> str:
        return json.dumps(self._told)

    def to_tell(
        self, verdicts: Iterable[Verdict], instance: dg.DagsterInstance, now: float, every: float
    ) -> list[dg.AssetCheckEvaluation]:
        """Those that were not said last, or not for some `every` seconds, and those of which Dagster shows something else; notes
        that they are said now."""
        return [v.evaluation() for v in verdicts if self._is_news(v, now, every) or _shows_otherwise(instance, v)]

    def _is_news(self, verdict: Verdict, now: float, every: float) -> bool:
        name = f"{verdict.check} {verdict.asset.to_user_string()}"
        told = blake2b(repr((verdict.passed, verdict.said, int(now // every))).encode(), digest_size=6).hexdigest()
        is_other = self._told.get(name) != told
        self._told[name] = told
        return is_other


def _shows_otherwise(instance: dg.DagsterInstance, verdict: Verdict) -> bool:
    """Whether the check's last evaluation says otherwise: one of a run, of which a sensor's cursor does not know, or one that a
    run was to make and has ended without."""
    last = instance.get_latest_asset_check_evaluation_record(verdict.key)
    if last is None:
        return False
    if last.status is AssetCheckExecutionRecordStatus.PLANNED:
        run = instance.get_run_by_id(last.run_id)
        return run is None or run.is_finished
    return last.evaluation is not None and last.evaluation.passed is not verdict.passed


def parts(cursor: str | None, count: int) -> list[str]:
    """A sensor's cursor of so many lines; "" for those that are not there."""
    lines = (cursor or "").split("\n")
    return [*lines, *[""] * count][:count]
