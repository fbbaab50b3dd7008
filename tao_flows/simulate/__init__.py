"""Replays jobs over a signal as it came: what each policy would have cost, beside the best there was in hindsight."""
