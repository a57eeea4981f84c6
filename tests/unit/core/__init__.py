"""The rules, without any server."""
