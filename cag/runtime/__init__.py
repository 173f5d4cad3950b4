"""What every program needs: errors, files, progress, processes, devices, seeds."""
