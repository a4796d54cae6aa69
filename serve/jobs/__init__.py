"""Jobs: their records, the rules by which they change, and the worker that does them."""
