"""Further passes over ratings: kept once, arranged for the caches, swept pass after pass (SC-SGD)."""
