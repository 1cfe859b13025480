"""One model on several processes: the connection between them (mpi), what they do together (session), and the kernels
that all of them have (level)."""
