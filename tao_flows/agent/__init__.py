"""The node agent: holds the privileges, samples the host, and serves windows to tasks on a Unix socket."""
