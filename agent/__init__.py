"""One host: the bus to the kernel, the workers that write to it, and what reconciles it."""
