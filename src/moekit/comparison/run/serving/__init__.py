"""What is measured of contestants as they are served: after all training, with nothing beside it."""
