"""What `bridge run` and the one-shot commands share: the planner, host names, scopes and rights."""
