"""The method on a cluster: where things run, and what happens when something dies."""
