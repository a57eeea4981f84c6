"""Consumers of what the engine says: logs, metrics, and the web server that shows them. Nothing depends on them."""
