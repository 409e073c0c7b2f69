"""Tables of parameters and their snapshots: synchronous; no sockets, no clock."""
