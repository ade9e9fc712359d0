"""Labels of every accepted layout, each read into what a COCO json would say of the same images."""
