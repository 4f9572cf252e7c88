"""The Alembic revisions of the database schema, run by `app.core.migrations`."""
