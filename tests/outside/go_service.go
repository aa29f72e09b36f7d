// A service of tests: it writes down what it handles, and fails for the sequences of FAIL.
//
//	DATABASE_URL=… KAFKA=… TOPIC=… [FAIL=1,2] service [accept SOURCE HISTORY | redeliver]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"sparkledger"
)

func handle(ctx context.Context, tx pgx.Tx, event sparkledger.Event) error {
	_, err := tx.Exec(ctx, "INSERT INTO handled (subject, sequence) VALUES ($1, $2)", event.Subject, event.Sequence)
	if err != nil {
		return err
	}
	if slices.Contains(strings.Split(os.Getenv("FAIL"), ","), strconv.FormatInt(event.Sequence, 10)) {
		return errors.New("no such advertiser")
	}
	return nil
}

func run(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	consumer := sparkledger.Consumer{
		Database: pool,
		Brokers:  []string{os.Getenv("KAFKA")},
		Topic:    os.Getenv("TOPIC"),
		Name:     "ours",
		Handle:   handle,
		Attempts: 3,
		Pause:    200 * time.Millisecond,
	}
	switch {
	case len(os.Args) == 4 && os.Args[1] == "accept":
		return consumer.AcceptHistory(ctx, os.Args[2], os.Args[3])
	case len(os.Args) == 2 && os.Args[1] == "redeliver":
		count, err := consumer.Redeliver(ctx)
		fmt.Println(count)
		return err
	}
	return consumer.Run(ctx)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
