"""What the YAML file of agents says."""
