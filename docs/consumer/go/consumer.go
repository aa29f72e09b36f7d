// Package sparkledger reads Sparkledger's events from Kafka into your own PostgreSQL, each exactly once.
//
// Copy this file into a package of your service. It needs franz-go and pgx.
//
//	consumer := sparkledger.Consumer{
//		Database: pool,
//		Brokers:  []string{"broker:9092"},
//		Topic:    "sparkledger.code-events.v1",
//		Name:     "billing",
//		Handle: func(ctx context.Context, tx pgx.Tx, event sparkledger.Event) error {
//			_, err := tx.Exec(ctx, "INSERT INTO …", event.Subject)
//			return err
//		},
//	}
//	err := consumer.Run(ctx)
//
// One transaction of your database contains what Handle writes with its transaction, and which events are done. The
// offset in Kafka is committed later. After a crash some events therefore come again, and are skipped. You may start as
// many processes with the same name as the topic has partitions; Kafka distributes the partitions.
//
// An event that is done already is skipped: it has the same id at the same position of its ledger (source and
// sequence), for example because everything was published again.
//
// An event for which Handle fails is tried again after 1 s, 2 s, 4 s …; its partition waits, and the others go on. A
// database that is unavailable does not count as an attempt.
//
// An event that has failed Attempts times is a dead letter: it is stored with the reason in sparkledger_dead_letters.
// [Consumer.Redeliver] hands it to Handle again once that is fixed. A record that is not an event of Sparkledger is
// stored at once, with the topic as its source, and partition and offset as its id.
//
// [Consumer.Run] ends with [ErrGap] where an event of a code is missing, and with [ErrForked] where an event that is
// done is another one now, or where the ledger goes on as another history: it was restored to an earlier state.
package sparkledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The tables are those of the consumer in Python, without its positions: here they are Kafka's offsets. The lock is for
// processes that start at the same time: without it, two of them would create the same table.
const schema = `
SELECT pg_advisory_xact_lock(7290130);
CREATE TABLE IF NOT EXISTS sparkledger_events (
    consumer text, source text, subject text, version int, id text NOT NULL, at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, subject, version));
ALTER TABLE sparkledger_events ADD COLUMN IF NOT EXISTS sequence bigint;
CREATE UNIQUE INDEX IF NOT EXISTS sparkledger_events_sequence ON sparkledger_events (consumer, source, sequence);
CREATE TABLE IF NOT EXISTS sparkledger_histories (
    consumer text, source text, history text, PRIMARY KEY (consumer, source, history));
CREATE TABLE IF NOT EXISTS sparkledger_streams (
    consumer text, source text, subject text, version int NOT NULL, last_id text NOT NULL,
    PRIMARY KEY (consumer, source, subject));
CREATE TABLE IF NOT EXISTS sparkledger_dead_letters (
    consumer text, source text, id text, headers jsonb NOT NULL, data jsonb NOT NULL, reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (consumer, source, id));
`

const (
	batchRecordsMax     = 200
	reasonCharactersMax = 1_000
	// The limit for each text in an index of the tables, far above those of Sparkledger's events.
	nameBytesMax = 1_000
	longestPause = time.Minute
	pollMax      = 5 * time.Second
)

var (
	// ErrGap says that an event of a code, or of a creator, is missing before this one: the topic or your tables are
	// damaged, and continuing would hide it. Read the topic from its beginning into empty tables, or find out what lost
	// the event.
	ErrGap = errors.New("events are missing")
	// ErrForked says that events that are done are no longer in the ledger's history. Restore the newer ledger, or empty
	// your tables and read the topic from its beginning. Where only the history is another one, let your tables follow
	// and call AcceptHistory.
	ErrForked = errors.New("the ledger was restored to an earlier state")

	errUnavailable = errors.New("the database is unavailable")
)

// Event is one event. Attributes are its CloudEvents attributes; Data is the JSON object that the trail has, with the
// fields code_id, creator_id, video_id and body among others.
type Event struct {
	ID, Source, Type, Subject string
	Sequence                  int64
	StreamVersion             int32
	Attributes                map[string]string
	Data                      json.RawMessage
}

// Consumer hands each event to Handle exactly once. All fields up to Handle are required.
type Consumer struct {
	Database *pgxpool.Pool
	Brokers  []string
	Topic    string
	Name     string // in Kafka and in your tables
	// Handle processes one event. It must write only with the transaction that it gets.
	Handle func(ctx context.Context, tx pgx.Tx, event Event) error

	Attempts int           // how often an event is tried before it is a dead letter; 5 if it is 0
	Pause    time.Duration // before the second attempt, doubled before each further one; 1 s if it is 0
	Kafka    []kgo.Opt     // further options of franz-go, for logins and TLS

	held map[int32]held
}

// held is what a partition waits for: its first record has failed, and is tried again when it is due.
type held struct {
	records []*kgo.Record
	attempt int
	due     time.Time
}

// Run reads until the context is done, and returns nil then. While the database or the brokers are unavailable, it tries
// again and again.
func (c *Consumer) Run(ctx context.Context) error {
	c.Attempts, c.Pause = orElse(c.Attempts, 5), orElse(c.Pause, time.Second)
	c.held = map[int32]held{}
	if err := c.createTables(ctx); err != nil {
		return unlessDone(ctx, err)
	}
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ConsumerGroup(c.Name),
		kgo.ConsumeTopics(c.Topic),
		// The defaults would return aborted events, and commit events that are not done.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.AutoCommitMarks(),
		// Partitions come and go between two polls only, never while their records are applied.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsRevoked(c.forgetAndCommit),
		kgo.OnPartitionsLost(c.forget),
		// The partitions of a killed process go to others after this time.
		kgo.SessionTimeout(10 * time.Second),
		// With the defaults, a topic that is created later, or a partition that waited, would be read late.
		kgo.MetadataMaxAge(5 * time.Second),
		kgo.FetchMaxWait(time.Second),
	}, c.Kafka...)...)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	wait := pollMax
	for ctx.Err() == nil {
		if wait, err = c.poll(ctx, client, wait); err != nil {
			return unlessDone(ctx, err)
		}
		client.AllowRebalance()
	}
	return nil
}

// poll applies the next records, and those that are to be tried again now. It returns how long nothing else is due.
func (c *Consumer) poll(ctx context.Context, client *kgo.Client, wait time.Duration) (time.Duration, error) {
	polling, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	fetches := client.PollRecords(polling, batchRecordsMax)
	fetches.EachError(func(_ string, partition int32, err error) {
		if polling.Err() == nil {
			slog.Warn("Kafka returned an error", "consumer", c.Name, "partition", partition, "error", err)
		}
	})
	var failed error
	fetches.EachPartition(func(fetched kgo.FetchTopicPartition) {
		if failed == nil && len(fetched.Records) > 0 {
			failed = c.apply(ctx, client, fetched.Partition, fetched.Records, 1)
		}
	})
	wait = pollMax
	for partition, waiting := range c.held {
		if failed == nil && !waiting.due.After(time.Now()) {
			failed = c.apply(ctx, client, partition, waiting.records, waiting.attempt)
		}
		if waiting, ok := c.held[partition]; ok {
			wait = max(0, min(wait, time.Until(waiting.due)))
		}
	}
	return wait, failed
}

// apply applies records of a partition in one transaction; where one fails, each in a transaction of its own. One that
// fails by itself waits, with all behind it in its partition.
func (c *Consumer) apply(ctx context.Context, client *kgo.Client, partition int32, records []*kgo.Record, attempt int) error {
	paused := map[string][]int32{c.Topic: {partition}}
	if attempt == 1 {
		err := c.transaction(ctx, func(tx pgx.Tx) error {
			for _, record := range records {
				if err := c.once(ctx, tx, record); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			delete(c.held, partition)
			client.MarkCommitRecords(records[len(records)-1])
			client.ResumeFetchPartitions(paused)
			return nil
		}
	}
	for number, record := range records {
		err := c.one(ctx, record, attempt)
		switch {
		case errors.Is(err, ErrGap) || errors.Is(err, ErrForked) || ctx.Err() != nil:
			return err
		case err != nil:
			pause := min(c.Pause<<min(attempt-1, 10), longestPause)
			slog.Warn("an event is tried again", "consumer", c.Name, "in", pause, "error", err)
			if !errors.Is(err, errUnavailable) {
				attempt++
			}
			c.held[partition] = held{records[number:], attempt, time.Now().Add(pause)}
			client.PauseFetchPartitions(paused)
			return nil
		}
		client.MarkCommitRecords(record)
		attempt = 1
	}
	delete(c.held, partition)
	client.ResumeFetchPartitions(paused)
	return nil
}

// one applies a record in a transaction of its own. With its last attempt it becomes a dead letter where it fails.
func (c *Consumer) one(ctx context.Context, record *kgo.Record, attempt int) error {
	err := c.transaction(ctx, func(tx pgx.Tx) error { return c.once(ctx, tx, record) })
	var foreign *foreignError
	isForeign := errors.As(err, &foreign)
	switch {
	case err == nil || ctx.Err() != nil,
		errors.Is(err, errUnavailable), errors.Is(err, ErrGap), errors.Is(err, ErrForked),
		attempt < c.Attempts && !isForeign:
		return err
	}
	slog.Error("a record is stored as a dead letter", "consumer", c.Name,
		"partition", record.Partition, "offset", record.Offset, "error", err)
	if !isForeign {
		stored := c.transaction(ctx, func(tx pgx.Tx) error {
			event, _ := eventOf(record)
			isNew, failed := c.isNew(ctx, tx, event)
			if failed != nil || !isNew {
				return failed
			}
			return c.addDeadLetter(ctx, tx, event.Source, event.ID, record, string(event.Data), err)
		})
		var refused interface{ SQLState() string }
		if !errors.As(stored, &refused) {
			return stored
		}
		// It contains what PostgreSQL cannot store, such as U+0000. Sparkledger's events never do.
	}
	return c.transaction(ctx, func(tx pgx.Tx) error {
		place := fmt.Sprintf("%d/%d", record.Partition, record.Offset)
		return c.addDeadLetter(ctx, tx, record.Topic, place, record, asJSON(string(record.Value)), err)
	})
}

func (c *Consumer) once(ctx context.Context, tx pgx.Tx, record *kgo.Record) error {
	event, err := eventOf(record)
	if err != nil {
		return &foreignError{err}
	}
	isNew, err := c.isNew(ctx, tx, event)
	if err != nil || !isNew {
		return err
	}
	return c.Handle(ctx, tx, event)
}

// isNew marks an event as done. It returns whether it was not done before, and checks that none is missing before it.
func (c *Consumer) isNew(ctx context.Context, tx pgx.Tx, event Event) (bool, error) {
	if err := c.checkHistory(ctx, tx, event); err != nil {
		return false, err
	}
	marked, err := tx.Exec(ctx,
		`INSERT INTO sparkledger_events (consumer, source, subject, version, id, sequence)
		VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
		c.Name, event.Source, event.Subject, event.StreamVersion, event.ID, event.Sequence)
	if err != nil {
		return false, err
	}
	if marked.RowsAffected() == 0 {
		// The same position and the same version of its subject: either of them may be another event's now.
		rows, _ := tx.Query(ctx,
			`SELECT id FROM sparkledger_events WHERE (consumer, source) = ($1, $2)
			AND ((subject, version) = ($3, $4) OR sequence = $5)`,
			c.Name, event.Source, event.Subject, event.StreamVersion, event.Sequence)
		done, err := pgx.CollectRows(rows, pgx.RowTo[string])
		for _, id := range done {
			if id != event.ID {
				return false, forked(event, id)
			}
		}
		return false, err
	}
	var version int32
	var lastID string
	err = tx.QueryRow(ctx,
		`SELECT version, last_id FROM sparkledger_streams
		WHERE (consumer, source, subject) = ($1, $2, $3) FOR UPDATE`,
		c.Name, event.Source, event.Subject).Scan(&version, &lastID)
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return false, err
	// The row of this event was deleted as an old one, so only the id of the last event can be compared.
	case event.StreamVersion == version && event.ID != lastID:
		return false, forked(event, lastID)
	case event.StreamVersion <= version:
		return false, nil
	case event.StreamVersion != version+1:
		return false, fmt.Errorf("%w: %s of %s goes from version %d to %d",
			ErrGap, event.Subject, event.Source, version, event.StreamVersion)
	}
	_, err = tx.Exec(ctx,
		`INSERT INTO sparkledger_streams (consumer, source, subject, version, last_id) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (consumer, source, subject)
		DO UPDATE SET version = excluded.version, last_id = excluded.last_id`,
		c.Name, event.Source, event.Subject, event.StreamVersion, event.ID)
	return true, err
}

// checkHistory fails where the ledger goes on as a history that nobody has accepted; the first one needs nobody.
func (c *Consumer) checkHistory(ctx context.Context, tx pgx.Tx, event Event) error {
	history, ok := event.Attributes["ledgerhistory"]
	if !ok {
		return nil
	}
	var accepted *bool
	err := tx.QueryRow(ctx,
		"SELECT bool_or(history = $3) FROM sparkledger_histories WHERE (consumer, source) = ($1, $2)",
		c.Name, event.Source, history).Scan(&accepted)
	switch {
	case err != nil:
		return err
	case accepted == nil:
		return c.insertHistory(ctx, tx, event.Source, history)
	case !*accepted:
		return fmt.Errorf("%w: %s goes on as history %s", ErrForked, event.Source, history)
	}
	return nil
}

// AcceptHistory lets the consumer read on in another history of a ledger, now that your tables follow it. The source and
// the history are those that ErrForked names.
func (c *Consumer) AcceptHistory(ctx context.Context, source, history string) error {
	return c.transaction(ctx, func(tx pgx.Tx) error { return c.insertHistory(ctx, tx, source, history) })
}

func (c *Consumer) insertHistory(ctx context.Context, tx pgx.Tx, source, history string) error {
	_, err := tx.Exec(ctx,
		"INSERT INTO sparkledger_histories (consumer, source, history) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
		c.Name, source, history)
	return err
}

// Redeliver hands the dead letters to Handle again, oldest first, and returns how many are done now. The first one that
// fails again ends this, and remains a dead letter. Records that are not events are skipped.
func (c *Consumer) Redeliver(ctx context.Context) (int, error) {
	rows, _ := c.Database.Query(ctx,
		"SELECT source, id, headers, data FROM sparkledger_dead_letters WHERE consumer = $1 ORDER BY at", c.Name)
	type letter struct {
		Source, ID string
		Headers    map[string]string
		Data       json.RawMessage
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[letter])
	if err != nil {
		return 0, err
	}
	count := 0
	for _, letter := range letters {
		event, err := newEvent(letter.Headers, letter.Data)
		if err != nil {
			slog.Warn("a record is not an event", "consumer", c.Name, "id", letter.ID, "error", err)
			continue
		}
		done := false
		err = c.transaction(ctx, func(tx pgx.Tx) error {
			deleted, err := tx.Exec(ctx,
				"DELETE FROM sparkledger_dead_letters WHERE (consumer, source, id) = ($1, $2, $3)",
				c.Name, letter.Source, letter.ID)
			// Another process that redelivers at the same time waits here, and then finds no row.
			if err != nil || deleted.RowsAffected() == 0 {
				return err
			}
			done = true
			return c.Handle(ctx, tx, event)
		})
		if err != nil {
			return count, err
		}
		if done {
			count++
		}
	}
	return count, nil
}

func (c *Consumer) addDeadLetter(
	ctx context.Context, tx pgx.Tx, source, id string, record *kgo.Record, data string, reason error,
) error {
	text := []rune(asText(reason.Error()))
	_, err := tx.Exec(ctx,
		`INSERT INTO sparkledger_dead_letters (consumer, source, id, headers, data, reason)
		VALUES ($1, $2, $3, $4, $5, $6)
		-- A record of a deleted topic with the same name may have had this offset.
		ON CONFLICT (consumer, source, id) DO UPDATE
		SET headers = excluded.headers, data = excluded.data, reason = excluded.reason, at = excluded.at`,
		c.Name, source, id, asJSON(headersOf(record)), data, string(text[:min(len(text), reasonCharactersMax)]))
	return err
}

func (c *Consumer) createTables(ctx context.Context) error {
	for {
		err := c.transaction(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, schema)
			return err
		})
		if !errors.Is(err, errUnavailable) {
			return err
		}
		slog.Warn("the consumer waits for the database", "consumer", c.Name, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(c.Pause):
		}
	}
}

// transaction returns errUnavailable where the connection was at fault, and not the work.
func (c *Consumer) transaction(ctx context.Context, work func(tx pgx.Tx) error) error {
	connection, err := c.Database.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	defer connection.Release()
	err = pgx.BeginFunc(ctx, connection, work)
	if err != nil && connection.Conn().IsClosed() {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	return err
}

// forget drops what waits in partitions that go to another process. It begins with what is not done.
func (c *Consumer) forget(_ context.Context, client *kgo.Client, partitions map[string][]int32) {
	for _, partition := range partitions[c.Topic] {
		delete(c.held, partition)
	}
	client.ResumeFetchPartitions(partitions)
}

func (c *Consumer) forgetAndCommit(ctx context.Context, client *kgo.Client, partitions map[string][]int32) {
	c.forget(ctx, client, partitions)
	if err := client.CommitMarkedOffsets(ctx); err != nil {
		slog.Warn("offsets are not committed; events that are done come again", "consumer", c.Name, "error", err)
	}
}

// foreignError is of a record that is not an event of Sparkledger.
type foreignError struct{ error }

func forked(event Event, done string) error {
	return fmt.Errorf("%w: version %d of %s of %s, or position %d, was done as %s and is %s now",
		ErrForked, event.StreamVersion, event.Subject, event.Source, event.Sequence, done, event.ID)
}

// eventOf returns the event of a record in CloudEvents' binary mode.
func eventOf(record *kgo.Record) (Event, error) {
	return newEvent(headersOf(record), record.Value)
}

func newEvent(headers map[string]string, data []byte) (Event, error) {
	attributes := map[string]string{}
	for name, value := range headers {
		if name, ok := strings.CutPrefix(name, "ce_"); ok {
			attributes[name] = value
		}
	}
	for _, name := range []string{"id", "source", "type", "subject"} {
		if length := len(attributes[name]); length == 0 || length > nameBytesMax {
			return Event{}, fmt.Errorf("its %s has %d bytes, not 1 to %d", name, length, nameBytesMax)
		}
	}
	sequence, err := strconv.ParseInt(attributes["sequence"], 10, 64)
	if err != nil {
		return Event{}, fmt.Errorf("its sequence: %w", err)
	}
	version, err := strconv.ParseInt(attributes["streamversion"], 10, 32)
	if err != nil {
		return Event{}, fmt.Errorf("its streamversion: %w", err)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil || object == nil {
		return Event{}, errors.New("its value is not a JSON object")
	}
	return Event{
		ID: attributes["id"], Source: attributes["source"], Type: attributes["type"], Subject: attributes["subject"],
		Sequence: sequence, StreamVersion: int32(version), Attributes: attributes, Data: data,
	}, nil
}

func headersOf(record *kgo.Record) map[string]string {
	headers := map[string]string{}
	for _, header := range record.Headers {
		headers[header.Key] = string(header.Value)
	}
	return headers
}

// asText returns any string as text that PostgreSQL can store.
func asText(value string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(value, "\ufffd"), "\x00", "\ufffd")
}

func asJSON(value any) string {
	encoded, _ := json.Marshal(value) // strings and maps of strings can always be encoded
	return strings.ReplaceAll(string(encoded), `\u0000`, `\ufffd`)
}

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// unlessDone returns the error of work that nobody has asked to end.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
