"""The obvious loops that every other backend is held to."""
