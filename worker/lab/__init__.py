"""The science: attacks, defenses, training and measuring. Knows nothing of SQL, Celery or HTTP."""
