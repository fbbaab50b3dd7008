"""What a run cost, for people: one model of it, and its renderers."""
