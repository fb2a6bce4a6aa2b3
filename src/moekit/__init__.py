"""moekit: dense, or mixture of experts? Trains both on the same data at the same compute, shows what each buys."""

__version__ = "0.1.0"
