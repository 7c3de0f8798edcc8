"""Limits calls exactly over all replicas of auth, by counters in Redis."""
