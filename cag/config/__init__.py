"""What `params.yaml` may hold: one module for each section that a stage reads."""
