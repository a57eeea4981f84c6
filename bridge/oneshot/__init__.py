"""The commands that read both sides once: `bridge sync`, `status`, `explain`, `check` and `purge`."""
