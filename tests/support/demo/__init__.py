"""`make demo`: the main job on real servers, shown as it happens."""
