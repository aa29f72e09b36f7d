// An example of a service that follows Sparkledger's events: which advertiser may run which video, and until when?
//
//	KAFKA=localhost:9092 DATABASE_URL=postgresql://localhost/ads go run ./example
//
// It keeps one table. Stop it, kill it, start it twice: the table ends up the same.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"sparkledger"
)

// The lock is for processes that start at the same time: without it, two of them would create the same table.
const tables = `
SELECT pg_advisory_xact_lock(7290131);
CREATE TABLE IF NOT EXISTS codes (code_id text PRIMARY KEY, expires_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS allowed (
    video_id text, advertiser_id text, until timestamptz NOT NULL, code_id text NOT NULL REFERENCES codes,
    PRIMARY KEY (code_id, advertiser_id));
`

// data is what this service needs of an event.
type data struct {
	CodeID  string `json:"code_id"`
	VideoID string `json:"video_id"`
	Body    struct {
		AdvertiserID string    `json:"advertiser_id"`
		ExpiresAt    time.Time `json:"expires_at"`
	} `json:"body"`
}

// handle updates the table by an event; other types are ignored.
func handle(ctx context.Context, tx pgx.Tx, event sparkledger.Event) error {
	var data data
	if err := json.Unmarshal(event.Data, &data); err != nil {
		return err
	}
	var batch pgx.Batch
	switch event.Type {
	case "sparkledger.CodeGenerated.v1":
		batch.Queue("INSERT INTO codes (code_id, expires_at) VALUES ($1, $2)", data.CodeID, data.Body.ExpiresAt)
	case "sparkledger.Extended.v1":
		batch.Queue("UPDATE codes SET expires_at = $2 WHERE code_id = $1", data.CodeID, data.Body.ExpiresAt)
		batch.Queue("UPDATE allowed SET until = $2 WHERE code_id = $1", data.CodeID, data.Body.ExpiresAt)
	case "sparkledger.Redeemed.v1":
		batch.Queue(`INSERT INTO allowed (video_id, advertiser_id, until, code_id)
			SELECT $1, $2, expires_at, code_id FROM codes WHERE code_id = $3`,
			data.VideoID, data.Body.AdvertiserID, data.CodeID)
	case "sparkledger.Revoked.v1":
		batch.Queue("DELETE FROM allowed WHERE code_id = $1", data.CodeID)
	}
	return tx.SendBatch(ctx, &batch).Close()
}

func run(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, tables); err != nil {
		return err
	}
	topic := os.Getenv("TOPIC")
	if topic == "" {
		topic = "sparkledger.code-events.v1"
	}
	consumer := sparkledger.Consumer{
		Database: pool,
		Brokers:  strings.Split(os.Getenv("KAFKA"), ","),
		Topic:    topic,
		Name:     "example",
		Handle:   handle,
	}
	return consumer.Run(ctx)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
