"""Networks, from images to logits: tokenizers, encoders, poolings, heads. Plain torch and timm; knows nothing of files, data or training."""
