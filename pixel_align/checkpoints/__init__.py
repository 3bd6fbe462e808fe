"""Checkpoints: storing ours, reading and writing those of others."""
