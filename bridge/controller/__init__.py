"""`bridge run`: threads, the work queue, leadership and retries: when something is done. What is right is decided in
`core`."""
