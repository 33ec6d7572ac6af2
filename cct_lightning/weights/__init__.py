"""Where weights come from and how they fit: files, downloads, others' names, what a checkpoint or export says of itself. Plain torch."""
