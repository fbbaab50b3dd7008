"""Carbon intensity and electricity price: configured by zone, fetched in the background, kept as issued."""
