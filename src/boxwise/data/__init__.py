"""Files to batches of views, and labelled samples for detectors."""
