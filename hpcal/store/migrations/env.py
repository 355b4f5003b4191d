"""What Alembic runs: the steps on the connection that it is given, within its transaction."""

from alembic import context

from hpcal.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
