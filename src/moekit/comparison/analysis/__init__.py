"""What results say: each contestant held against the baseline, and the verdict in words."""
