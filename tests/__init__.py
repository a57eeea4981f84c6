"""Tests of the bridge: on pure values, on fakes, and on real servers (README.md, Development)."""
