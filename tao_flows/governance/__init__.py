"""Signed records of runs: bundles, their verification, and the documents in them."""
