// Traefik's own reader of Ingresses, Services and EndpointSlices (its provider "kubernetes"), without the rest of it:
// whatever configuration it hands to Traefik's router, one line of JSON each, on stdout. KUBECONFIG says which cluster.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/provider/kubernetes/ingress"
	"github.com/traefik/traefik/v3/pkg/safe"
)

func main() {
	provider := ingress.Provider{Namespaces: os.Args[1:]}
	messages := make(chan dynamic.Message)
	if err := provider.Provide(messages, safe.NewPool(context.Background())); err != nil {
		log.Fatal(err)
	}
	out := json.NewEncoder(os.Stdout)
	for message := range messages {
		if err := out.Encode(message.Configuration.HTTP); err != nil {
			log.Fatal(err)
		}
	}
}
