"""Jobs that put something right, started by a person."""

import dagster as dg
from pydantic import Field

from recs_platform.dead_letters import Choice
from recs_platform.defs.resources import Platform
from recs_platform.defs.stream import BETWEEN_RETRIES, RETRIES
from recs_platform.errors import EngineUnavailable, RecsError
from recs_platform.resend import Fix, Report, resend


class Replay(dg.Config):
    """Which dead letters are sent back, and how they are put right."""

    topic: str | None = Field(default=None, description="Those of this topic alone.")
    reason: str | None = Field(default=None, description="Those with this reason alone.")
    fix: str | None = Field(default=None, description="A jq program from each message to what it should have been.")
    limit: int | None = Field(default=None, ge=1, description="Send no more than so many.")
    dry_run: bool = Field(default=False, description="Only say what would be sent.")


@dg.definitions
def definitions() -> dg.Definitions:
    return dg.Definitions(jobs=[replay_dead_letters])


@dg.op(out=dg.Out(dg.Nothing))
def replay(context: dg.OpExecutionContext, config: Replay, platform: dg.ResourceParam[Platform]) -> None:
    """Sends back what would be taken in now, as it is or fixed, each letter once."""

    def tell(report: Report) -> None:
        context.log.info(f"{report.looked_at:,} letters looked at, {report.sent:,} sent")

    choice = Choice(config.topic, config.reason)
    try:
        fix = Fix(config.fix) if config.fix else None
        with platform.engine() as engine:
            report = resend(platform.settings(), engine, choice, fix, config.limit, config.dry_run, tell)
    except EngineUnavailable as error:
        raise dg.RetryRequested(RETRIES, BETWEEN_RETRIES) from error
    except (RecsError, ValueError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("\n".join(report.lines(config.dry_run)))
    counts = {"sent": report.sent, "sent before": report.already, "of no use": report.unfit.total()}
    unfit = "\n".join(f"- {count:,} {reason}" for reason, count in report.unfit.most_common())
    context.add_output_metadata(
        {name: dg.MetadataValue.int(count) for name, count in counts.items()}
        | {"why": dg.MetadataValue.md(unfit or "–")}
    )


@dg.job(
    name="replay_dead_letters",
    description="Sends dead letters that would be taken in now back to their topics, as they are or fixed; each once.",
)
def replay_dead_letters() -> None:
    replay()
