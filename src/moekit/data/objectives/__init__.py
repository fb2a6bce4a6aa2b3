"""Training objectives: inputs and targets made of tokens, pure functions of a seed."""
