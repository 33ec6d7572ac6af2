"""Studies: runs that differ in one thing, compared over equal seeds. Commands enter; nothing is trained here but through what they hand in."""
