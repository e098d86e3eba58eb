// Sends one CloudEvent with the Go SDK, and prints the result as JSON: the status, and the response event as
// the SDK parses it.
//
//	cloudevents -to URL -mode binary|structured -source SOURCE -id ID [-time TIME] [-key KEY] < request.json
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log"
	"os"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

func main() {
	to := flag.String("to", "", "where to")
	mode := flag.String("mode", "binary", "how")
	source := flag.String("source", "/pager", "the event's source")
	id := flag.String("id", "1", "the event's id")
	at := flag.String("time", "", "the event's time, else now")
	key := flag.String("key", "", "a bearer token")
	traceparent := flag.String("traceparent", "", "the event's trace")
	flag.Parse()

	data, err := io.ReadAll(os.Stdin)
	check(err)
	event := cloudevents.NewEvent()
	event.SetID(*id)
	event.SetSource(*source)
	event.SetType("dev.action-executor.action.request.v1")
	event.SetTime(time.Now())
	if *at != "" {
		moment, err := time.Parse(time.RFC3339, *at)
		check(err)
		event.SetTime(moment)
	}
	if *traceparent != "" {
		event.SetExtension("traceparent", *traceparent)
	}
	check(event.SetData(cloudevents.ApplicationJSON, json.RawMessage(data)))

	options := []cehttp.Option{cehttp.WithTarget(*to)}
	if *key != "" {
		options = append(options, cehttp.WithHeader("Authorization", "Bearer "+*key))
	}
	client, err := cloudevents.NewClientHTTP(options...)
	check(err)
	ctx := context.Background()
	if *mode == "structured" {
		ctx = binding.WithForceStructured(ctx)
	}
	answer, result := client.Request(ctx, event)
	report := struct {
		Status int                `json:"status"`
		Event  *cloudevents.Event `json:"event,omitempty"`
		Result string             `json:"result"`
	}{Event: answer}
	if result != nil {
		report.Result = result.Error()
	}
	var withStatus *cehttp.Result
	if errors.As(result, &withStatus) {
		report.Status = withStatus.StatusCode
	}
	if answer != nil {
		check(answer.Validate())
	}
	check(json.NewEncoder(os.Stdout).Encode(report))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
