"""One training for all: samples, transforms, objectives and the loop."""
