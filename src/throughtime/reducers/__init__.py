"""Analyses of gradients, one file each: what is kept of the sweep, lag by lag, in sums that can be merged."""
