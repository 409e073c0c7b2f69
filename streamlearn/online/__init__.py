"""Formats and learning algorithms: synchronous, over minibatches; no sockets."""
