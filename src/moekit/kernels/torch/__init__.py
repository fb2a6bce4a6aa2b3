"""Fast experts out of torch operations alone."""
