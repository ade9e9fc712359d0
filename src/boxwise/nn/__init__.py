"""Networks and losses. Knows tensors and views, never files, recipes or loops."""
