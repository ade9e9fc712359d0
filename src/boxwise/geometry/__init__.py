"""Boxes, views and matched regions. Imports torch and nothing of ours but `shapes` and `config`."""
