"""Models written for other programs: GGUF files."""
