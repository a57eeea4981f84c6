"""Consumers of the controller's results: logs, metrics, and the web server that shows them. Nothing depends on them."""
