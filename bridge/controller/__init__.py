"""`bridge run`: threads, work queue, leadership and retries. It decides when to act; `core` decides what to do."""
