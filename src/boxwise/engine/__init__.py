"""One loop for pretraining, probes and detectors. Knows tasks, but not boxes."""
