"""From checkpoints to other checkpoints: upcycling, splitting, merging, written as a stream."""
