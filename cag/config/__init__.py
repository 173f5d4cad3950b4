"""The content of `params.yaml`: a module for each section that a stage reads."""
