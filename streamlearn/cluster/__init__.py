"""Shards, workers and followers as processes, and what watches over them."""
