"""Figures beside their floors: each is measured together with plain clients that do the same requests."""
