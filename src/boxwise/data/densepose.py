"""How DensePose annotates people in a COCO json: the numbers that all who read or measure it share."""

DENSE = "dp"
"""The extra that stands for every field of DensePose: dp_x, dp_y, dp_I, dp_U, dp_V, dp_masks."""
DENSE_SIDE = 255
"""Points count from 0 to 255 across a box and down."""
BODY_SIDE = 256
"""Pixels a side of the coarse parts in dp_masks, whatever their box."""
PARTS = 24
"""Charts of the surface, numbered from 1."""
