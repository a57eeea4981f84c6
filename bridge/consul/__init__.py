"""The only package that knows Consul: how to ask it, how to wait for changes, and what its answers prove.

It knows nothing of Kubernetes, rules or guards: it turns a set of wanted queries into a stream of views.
"""
