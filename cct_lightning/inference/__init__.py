"""A trained network in use: opened, predicting, exported. Plain torch, no Lightning."""
