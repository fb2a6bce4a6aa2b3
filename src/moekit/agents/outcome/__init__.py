"""What comes out of an answer: the text with what it took, and the trace of how it came about."""
