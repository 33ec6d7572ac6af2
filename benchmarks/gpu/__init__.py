"""The proof on a GPU in half an hour, on a machine that may be cut off: bundle packs what it lacks, check looks for defects, measure times."""
