"""Whole configurations as functions: values, no logic."""
