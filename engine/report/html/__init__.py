"""The page that shows a report."""
