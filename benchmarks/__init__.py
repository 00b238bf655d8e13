"""Side by side with rivals, as ratios measured in one process: `python -m benchmarks`, or `make bench`."""
