// external-dns' own reader of Services and EndpointSlices (its source "service"), without its fifty DNS providers:
// the records that it would publish, one line of JSON each time that they change, on stdout.
// KUBECONFIG says which cluster; the argument is a namespace.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/external-dns/source"
	"sigs.k8s.io/external-dns/source/template"
)

func main() {
	ctx := context.Background()
	settings, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		log.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(settings)
	if err != nil {
		log.Fatal(err)
	}
	names, err := template.NewEngine(nil, nil, nil, false)
	if err != nil {
		log.Fatal(err)
	}
	services, err := source.NewServiceSource(ctx, client, &source.Config{
		Namespace: os.Args[1], LabelFilter: labels.Everything(), AnnotationFilter: labels.Everything(),
		TemplateEngine: names, PublishInternal: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	for said := ""; ; time.Sleep(200 * time.Millisecond) {
		records, err := services.Endpoints(ctx)
		if err != nil {
			log.Fatal(err)
		}
		line, err := json.Marshal(records)
		if err != nil {
			log.Fatal(err)
		}
		if string(line) != said {
			said = string(line)
			fmt.Println(said)
		}
	}
}
