// franz-go, following the topic of events: a line for each event.
//
//	franz BOOTSTRAP TOPIC
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(os.Args[1]),
		kgo.ConsumeTopics(os.Args[2]),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMaxAge(5*time.Second),
	)
	if err != nil {
		panic(err)
	}
	for {
		fetches := client.PollFetches(context.Background())
		fetches.EachError(func(_ string, _ int32, err error) { fmt.Fprintln(os.Stderr, err) })
		fetches.EachRecord(func(record *kgo.Record) {
			headers := map[string]string{}
			for _, header := range record.Headers {
				headers[header.Key] = string(header.Value)
			}
			sequence, _ := strconv.Atoi(headers["ce_sequence"])
			version, _ := strconv.Atoi(headers["ce_streamversion"])
			line, _ := json.Marshal([]any{sequence, headers["ce_subject"], headers["ce_id"], version})
			fmt.Println(string(line))
		})
	}
}
