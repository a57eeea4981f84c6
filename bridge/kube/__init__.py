"""The only package that knows Kubernetes: requests, objects as JSON, informer and store, writer, lease, events."""
