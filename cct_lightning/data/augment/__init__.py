"""Augmentation: of one image, of every image of a batch on the device, of a batch as a whole. Only ``data`` comes in here."""
