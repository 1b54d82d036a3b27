"""Changes of the schema, oldest first, as Alembic runs them (docs/adr/0017-one-database-and-its-migrations.md)."""
