"""The database's history: Alembic revisions, run by `app.operations.schema`."""
