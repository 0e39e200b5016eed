"""Before any test imports a library: one thread a process, and the shim for torchvision (see core/shims.py)."""

import os

# Two test processes with two threads each on two cores spend their time waiting for one another.
os.environ["OMP_NUM_THREADS"] = "1"

import neural_rdm  # noqa: F401
