"""One run, from its first step to its page; ``commands`` and Python call it."""
