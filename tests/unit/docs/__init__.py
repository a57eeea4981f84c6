"""Documents that are made from the code are not stale."""
