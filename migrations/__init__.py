"""The database's history: Alembic revisions, run by `app.core.migrations`."""
