"""Data sets: batches one by one, as sums that merge, with intervals, engines and files to go on from."""
