"""Further passes over ratings: kept once, arranged for the caches, swept and swept (SC-SGD)."""
