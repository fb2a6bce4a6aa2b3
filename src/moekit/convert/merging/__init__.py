"""Several dense models of one shape to one mixture of experts."""
