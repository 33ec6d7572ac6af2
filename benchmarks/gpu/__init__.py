"""The proof on a GPU, for half an hour on a machine that may be cut off: ``bundle`` packs what it lacks, ``check`` looks for defects, ``measure`` times."""
