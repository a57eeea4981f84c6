"""Documents that are made from the code, and tests that every command in the others does what it says."""
