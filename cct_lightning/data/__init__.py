"""What a network is given: images found, read, prepared, augmented and cut into batches. Knows nothing of networks."""
