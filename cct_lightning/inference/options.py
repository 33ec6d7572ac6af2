"""What a network may be opened with, told where no torch is needed."""

from __future__ import annotations

# What a network may be opened with, told where no torch is needed.
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
