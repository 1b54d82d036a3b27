"""Alembic loads this file by its path and runs the migrations on the connection that `Database` hands over.

The connection is inside a transaction that holds the lock, so that all changes are made or none.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
