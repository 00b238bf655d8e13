"""Programs that use throughtime, to run and to read."""
