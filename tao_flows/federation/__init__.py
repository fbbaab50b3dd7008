"""Work that other organisations run for us, and what they may say of it: signed descriptors, records and heads."""
