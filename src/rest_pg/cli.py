"""The project's own commands, beside Kedro's: ``kedro clean``, ``kedro doctor``, ``kedro forget``, ``kedro lineage``."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import PARAMS_ARG_HELP, run
from kedro.framework.cli.utils import CONTEXT_SETTINGS, _split_params, env_option
from kedro.utils import find_kedro_project

# a packaged project is run by this module's ``run``
__all__ = ["cli", "run"]


@click.group(context_settings=CONTEXT_SETTINGS, name=__file__)
def cli() -> None:
    """Hold the project's commands."""


@cli.command()
@env_option
@click.option(
    "--params", type=click.UNPROCESSED, default="", help=PARAMS_ARG_HELP, callback=_split_params
)
@click.option(
    "--calibration/--no-calibration",
    default=True,
    help="Measure this machine's speed, in about 20 seconds.",
)
def doctor(env: str | None, params: dict[str, Any], calibration: bool) -> None:
    """Say whether a run would work here, and how long it would take.

    Checks versions, devices, models, data, prompts, budgets, memory and disk; the exit status is 1 if
    something would make the run fail.
    """
    # everything heavy waits until it is needed: every kedro command imports this module
    from rest_pg.doctor.examination import examine  # noqa: PLC0415
    from rest_pg.doctor.findings import lay_out  # noqa: PLC0415

    project = find_kedro_project(Path.cwd()) or Path.cwd()
    levels: Counter[str] = Counter()
    for section in examine(project, env, params, calibrated=calibration):
        click.secho(f"\n{section.title}", bold=True)
        click.echo(lay_out(section.findings))
        if section.table:
            click.echo("\n" + "\n".join(f"  {line}" for line in section.table.splitlines()))
        levels.update(finding.level for finding in section.findings)
    click.echo(f"\n{levels['problem']} problems, {levels['warning']} warnings")
    if levels["problem"]:
        raise click.exceptions.Exit(1)


@cli.command()
@env_option
@click.option("--run-id", help="The MLflow run; the newest finished one, if none is named.")
def lineage(env: str | None, run_id: str | None) -> None:
    """Attach kedro-viz, as a static site, to an MLflow run."""
    from rest_pg.lineage import ARTIFACTS, attach_lineage  # noqa: PLC0415

    project = find_kedro_project(Path.cwd()) or Path.cwd()
    try:
        found = attach_lineage(project, env, run_id)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{ARTIFACTS}/index.html is among the artifacts of run {found}")


@cli.command()
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Newest versions of each dataset that stay, with all that they were made from. 0: everything "
    "that a run makes goes, also reports and embeddings.",
)
@click.option(
    "--tracking",
    is_flag=True,
    help="MLflow's database and artifacts too, unless models are registered.",
)
@click.option(
    "--yes", is_flag=True, help="Remove what the table lists; without it nothing changes."
)
def clean(keep: int, tracking: bool, yes: bool) -> None:
    """Remove old versions, unfinished work (shards, checkpoints) and temporary files.

    Raw data (data/01_raw), configuration, the list of forgotten users and files that no catalog names stay.
    """
    from rest_pg.storage.clean import clean as remove  # noqa: PLC0415

    project = find_kedro_project(Path.cwd()) or Path.cwd()
    try:
        for line in remove(project, keep, tracking=tracking, really=yes):
            click.echo(line)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@cli.command()
@click.argument("user")
@env_option
@click.option(
    "--yes", is_flag=True, help="Remove it; without, a table is printed and nothing changed."
)
@click.option(
    "--policies",
    type=click.Choice(["retire"]),
    help="retire: delete the policies that were trained on the user, but never the base policy.",
)
def forget(user: str, env: str | None, yes: bool, policies: str | None) -> None:
    """Remove a user's records, and all that was made of them, from the data of every environment.

    USER is the id as the data have it, compared whole; after `--` it may begin with a dash. The exit
    status is 1 if the user is unknown, or if something is damaged, locked or out of reach.
    """
    from rest_pg.privacy.forget import forget as forget_user  # noqa: PLC0415

    project = find_kedro_project(Path.cwd()) or Path.cwd()
    with contextlib.chdir(project):
        try:
            done = forget_user(
                project, user, env, yes=yes, retire=policies == "retire", say=click.echo
            )
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    if not done:
        raise click.exceptions.Exit(1)
