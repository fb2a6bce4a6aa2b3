"""What a model learns from text: inputs and targets made of tokens, pure functions of a seed."""
