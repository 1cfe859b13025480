"""The C kernels under Cython. Importing this package loads them and chooses the best level of this machine."""

from cgpt.kernels import runtime  # noqa: F401  first: it loads the kernels with OpenMP's settings

# isort: split
from cgpt.kernels import isa

isa.use_best()
