"""A project's experiments, sweeps, status and raw data: the only code here that knows `data/`."""
