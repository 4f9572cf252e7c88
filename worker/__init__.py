"""The data plane: Celery workers and the lab."""

import os

# By default OpenMP threads spin while they wait for each other. If another process occupies a core, they spin until it
# yields: eight times slower on two cores (docs/results/speed.md). OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
