"""The method: one clip, one machine. Read `stages.py` first, it is the whole program in order."""
