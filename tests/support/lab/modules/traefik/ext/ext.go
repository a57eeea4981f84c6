// Package ext stands in for a module that Traefik's go.mod replaces by a folder which its own archive leaves out.
package ext

// HTTP adds nothing to Traefik's configuration.
type HTTP struct{}

// Router adds nothing to that of a router.
type Router struct{}
