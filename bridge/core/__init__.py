"""The rules of the bridge, pure: the standard library only; no clock, thread, environment, log or client library."""
