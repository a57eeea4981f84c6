"""Documents that are made from the code, and tests that every command in the rest does what it says."""
