"""Programs that measure: python -m benchmarks.NAME."""
