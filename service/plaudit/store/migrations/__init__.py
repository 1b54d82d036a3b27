"""Changes of the schema, oldest first, as Alembic runs them (docs/adr/0013, "Migrations")."""
