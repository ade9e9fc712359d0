"""Detectors from torchvision's parts, every convention said aloud, and what pretrained weights go into."""
