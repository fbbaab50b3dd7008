"""The append-only ingest: records come in over HTTP, from who holds a team's token, and nothing is ever shown."""
