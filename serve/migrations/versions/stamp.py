"""Alembic keeps the revision."""

from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    op.drop_table("schema_version")
