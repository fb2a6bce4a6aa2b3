"""Writing folders of weights as a stream that goes on where it was stopped."""
