"""The needs of every program: errors, files, progress, processes, devices, seeds."""
