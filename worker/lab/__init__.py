"""The science: attacks, defenses, training and evaluation. Knows nothing of SQL, Celery or HTTP."""
