"""Detectors that take pretrained weights, and what they are measured by."""
