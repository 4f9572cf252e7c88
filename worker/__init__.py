"""The data plane: Celery workers, and the lab."""

import os

# OpenMP's threads otherwise wait for each other by spinning. Where another process has one of the processors, all the
# others spin until its turn is over: eight times as slow on two (docs/results/speed.md). Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
