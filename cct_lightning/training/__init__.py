"""How a step is taken: optimizers, schedules, losses, the engine, what the hardware offers. Knows nothing of networks or data."""
