"""Looking at a round: curves of thresholds, inspection of pixels, figures."""
