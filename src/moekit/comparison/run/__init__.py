"""Training runs, each in a process of its own, and what is measured in them."""
