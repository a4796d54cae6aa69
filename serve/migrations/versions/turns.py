"""Turns, apart from the jobs."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("tenant", sa.String(64), sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("served_at", sa.Float, nullable=False),
    )
    op.execute(
        "INSERT INTO turns (tenant, kind, served_at) SELECT tenant, kind, max(started_at) FROM jobs"
        " WHERE started_at IS NOT NULL GROUP BY tenant, kind"
    )
