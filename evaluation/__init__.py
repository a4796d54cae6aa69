"""Quality against ground truth: `recapture evaluate`. Start at `evaluate.py`; what is compared is in `rows.py`."""
