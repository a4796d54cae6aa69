"""`recapture database`: the service's tables."""

from typing import Annotated

import typer

from .serve import Data, DatabaseOption, settings_of

database = typer.Typer(help="The service's database.", no_args_is_help=True)


@database.callback()
def _database() -> None:
    pass


@database.command("migrate")
def migrate(
    data: Data = None,
    database: DatabaseOption = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead, for the database's own tools.")] = False,
) -> None:
    """Bring the tables to this version's. `recapture serve` does so as it starts, if its user may change tables."""
    from ..serve.database import Database

    settings = settings_of(data=data, database=database)
    records = Database(settings.database_url, up_to_date=False)
    before = records.revision()
    if sql:
        typer.echo(records.migration_sql(), nl=False)
        return
    records.migrate()
    after = records.revision()
    way = f"has revision {after}" if before == after else f"went from revision {before or 'none'} to {after}"
    typer.echo(f"{records.where} {way}")
