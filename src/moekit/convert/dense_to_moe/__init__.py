"""One dense model to a mixture of experts: upcycled, or split."""
