"""A trained network outside the pipeline: prediction, export, the authors' checkpoints."""
