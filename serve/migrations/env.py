"""What Alembic runs revisions in; `migrations` hands it the connection, whose transaction holds all of them."""

from alembic import context

connection = context.config.attributes["connection"]
if context.is_offline_mode():
    context.configure(dialect_name=connection.dialect.name, literal_binds=True)
else:
    context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
