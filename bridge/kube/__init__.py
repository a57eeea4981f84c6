"""The only room that knows Kubernetes: requests, objects as JSON, the cache of what is there, the writer, the lease."""
