"""What is compared: contestants, what they cost, and the frozen plan of a comparison."""
