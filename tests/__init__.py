"""Tests of the bridge; see docs/development.md for what each folder proves."""
