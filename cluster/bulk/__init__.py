"""Bulk runs: a manifest of clips times paths, any number of workers, results as rows. Start at `driver.py`."""
