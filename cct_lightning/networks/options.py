"""What describes a network, in plain values: importing this needs no torch."""

from typing import Literal

ClassToken = Literal["none", "full", "read_only"]
Position = Literal["learned", "sine", "none"]
