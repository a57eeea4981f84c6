"""What `bridge run` and the one-shot commands share: options, planner, rows of services, host names, scopes, rights."""
