"""Before any test imports a library that imports torchvision (see core/shims.py)."""

import neural_rdm  # noqa: F401
