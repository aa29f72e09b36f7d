// Checks a served log with Tessera's own fsck, and answers with an exit status: the command of v1.0.4 exits with 0
// whatever it finds. With -old it also checks that the log continues an older checkpoint. Nothing here is ours but
// the order of the calls.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

// With fewer workers than differing tiles, fsck of v1.0.4 waits for ever.
const workers = 16

func main() {
	where := flag.String("url", "", "the log's address")
	key := flag.String("key", "", "the verifier key")
	token := flag.String("token", "", "an API key, for a log that is not public")
	old := flag.String("old", "", "a file with an older checkpoint that the log must continue")
	save := flag.String("save", "", "a file to write the checkpoint to")
	flag.Parse()
	size, err := check(context.Background(), *where, *key, *token, *old, *save)
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
	fmt.Println(size)
}

func check(ctx context.Context, where, key, token, old, save string) (uint64, error) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return 0, err
	}
	root, err := url.Parse(strings.TrimSuffix(where, "/") + "/")
	if err != nil {
		return 0, err
	}
	log, err := client.NewHTTPFetcher(root, nil)
	if err != nil {
		return 0, err
	}
	if token != "" {
		log.SetAuthorizationHeader("Bearer " + token)
	}
	if err := fsck.New(verifier.Name(), verifier, log, leafHashes, fsck.Opts{N: workers}).Check(ctx); err != nil {
		return 0, err
	}
	now, raw, _, err := client.FetchCheckpoint(ctx, log.ReadCheckpoint, verifier, verifier.Name())
	if err != nil {
		return 0, err
	}
	if old != "" {
		read := func(context.Context) ([]byte, error) { return os.ReadFile(old) }
		before, _, _, err := client.FetchCheckpoint(ctx, read, verifier, verifier.Name())
		if err != nil {
			return 0, err
		}
		if now.Size < before.Size {
			return 0, errors.New("the log is smaller than the older checkpoint")
		}
		builder, err := client.NewProofBuilder(ctx, now.Size, log.ReadTile)
		if err != nil {
			return 0, err
		}
		hashes, err := builder.ConsistencyProof(ctx, before.Size, now.Size)
		if err != nil {
			return 0, err
		}
		err = proof.VerifyConsistency(rfc6962.DefaultHasher, before.Size, now.Size, hashes, before.Hash, now.Hash)
		if err != nil {
			return 0, err
		}
	}
	if save != "" {
		if err := os.WriteFile(save, raw, 0o600); err != nil {
			return 0, err
		}
	}
	return now.Size, nil
}

func leafHashes(bundle []byte) ([][]byte, error) {
	entries := &api.EntryBundle{}
	if err := entries.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	var hashes [][]byte
	for _, entry := range entries.Entries {
		hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(entry))
	}
	return hashes, nil
}
