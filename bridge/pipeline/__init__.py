"""What `bridge run` and the one-shot commands share: the reconciler, host names, scopes and rights."""
