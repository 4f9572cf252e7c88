"""The Alembic revisions of the database schema, run by `app.operations.schema`."""
