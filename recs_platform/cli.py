"""`recs …`: the command line, grouped by what one wants to do."""

from __future__ import annotations

import click

from recs_platform.commands import audit, dead_letters, doctor, forget, pipeline, serving, stack, status, traffic

GROUPS: dict[str, list[click.Command]] = {
    "The stack": [stack.up, status.status, stack.down],
    "Recommendations": [serving.recommend, serving.trending, serving.query],
    "Traffic": [traffic.simulate, traffic.replay, traffic.catalog],
    "The pipeline": [pipeline.plan, pipeline.apply, pipeline.rollback, pipeline.sql],
    "Looking after it": [doctor.doctor, audit.audit, dead_letters.dead_letters, forget.forget],
}


class _Grouped(click.Group):
    """Lists the commands under headings, in the order a newcomer needs them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(command.name or "", command.get_short_help_str(90)) for command in commands])


@click.group(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="recs-platform")
def main() -> None:
    """Real-time recommendations, on this machine.

    Start with `recs up`. In a second terminal try `recs recommend 123`, `recs trending` and `recs status`;
    `recs COMMAND --help` tells more of each command.
    """


for _commands in GROUPS.values():
    for _command in _commands:
        main.add_command(_command)
