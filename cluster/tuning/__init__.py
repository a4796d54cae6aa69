"""Tuning of one clip by several devices."""
