"""The only place that touches sockets and storage."""
