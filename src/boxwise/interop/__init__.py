"""Weights in and out: names of other libraries, and files that hold no code."""
