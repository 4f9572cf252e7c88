"""The science: attacks, defences, training and measuring. Knows nothing of SQL, Celery or HTTP."""
