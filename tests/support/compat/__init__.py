"""The bridge against other versions of Kubernetes and Consul: `make compat`; results: docs/compatibility.md."""
