"""The project's own commands, beside Kedro's, and ``kedro run``, which tells errors once."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import PARAMS_ARG_HELP
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import CONTEXT_SETTINGS, env_option

from rest_pg.hooks.interrupt import InterruptedRun
from rest_pg.runtime.command_line import read_params
from rest_pg.runtime.errors import tell
from rest_pg.runtime.known_parameters import text_names
from rest_pg.runtime.session import project_root, use_project_logging

# a packaged project is run by this module's ``run``
__all__ = ["cli", "run"]


@click.group(context_settings=CONTEXT_SETTINGS, name=__file__)
def cli() -> None:
    """Hold the project's commands."""


def as_typed(context: click.Context, option: Any, value: str | Mapping[str, Any]) -> dict[str, Any]:
    """Read ``--params``; a path or a name arrives as it was typed."""
    if isinstance(value, Mapping):  # of a file, by --config
        return dict(value)
    conf = Path(context.params.get("conf_source") or project_root() / "conf")
    try:
        return read_params(value, text_names(conf) if value and conf.is_dir() else {})
    except ValueError as error:
        context.fail(f"--params: {error}")


def enter_project() -> Path:
    """Go to the project's directory, and log as it says; return it."""
    project = project_root()
    use_project_logging(project)
    os.chdir(project)
    return project


class RunCommand(click.Command):
    """``kedro run`` in the project's directory; an error is told once, last."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and tell what ended it."""
        enter_project()
        try:
            return super().invoke(ctx)
        except InterruptedRun as stop:
            tell(stop)
            raise
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            tell(error)
            raise click.exceptions.Exit(1) from error


def _own_run() -> click.Command:
    """Return Kedro's command with our reading of ``--params`` and our telling of errors."""
    options = [copy.copy(option) for option in kedro_run.params]
    for option in options:
        if option.name == "params":
            option.callback = as_typed
    return RunCommand(
        "run",
        callback=kedro_run.callback,
        params=options,
        help=kedro_run.help,
        context_settings=kedro_run.context_settings,
    )


run = _own_run()
cli.add_command(run)


@cli.command()
@env_option
@click.option(
    "--params", type=click.UNPROCESSED, default="", help=PARAMS_ARG_HELP, callback=as_typed
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

    project = enter_project()
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

    project = enter_project()
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

    project = enter_project()
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

    project = enter_project()
    try:
        done = forget_user(project, user, env, yes=yes, retire=policies == "retire", say=click.echo)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if not done:
        raise click.exceptions.Exit(1)
