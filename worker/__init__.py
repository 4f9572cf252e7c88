"""The data plane: Celery workers and the lab."""

import os

# By default OpenMP threads spin while they wait for each other. If another process occupies a core, they spin until it
# yields: many times slower on two cores. If they sleep at once, the short operations of small networks wait for them to
# wake. So they spin for some microseconds (docs/results/speed.md). OpenMP reads this when torch is imported; GNU's
# takes the number, another one takes the policy.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
