"""What frozen features know, without a detector: linear classifiers on them, and support vector machines."""
