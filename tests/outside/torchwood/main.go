// Checks notes and drives a witness with libraries that are not ours: Go's sumdb, torchwood, transparency-dev's formats.
//
//	torchwood verify LOGKEY WITNESSKEY NOTE...   each note is signed by the log and by the witness; prints sizes
//	torchwood key                                prints the verifier key of a log that lives in this program
//	torchwood drive URL WITNESSKEY               lets the witness sign that log as it grows, and checks its signatures
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"filippo.io/torchwood"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const origin = "log.example/of-another"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 3 && args[0] == "verify":
		return verify(args[1], args[2], args[3:])
	case len(args) == 1 && args[0] == "key":
		_, key, err := keys()
		fmt.Println(key)
		return err
	case len(args) == 3 && args[0] == "drive":
		return drive(args[1], args[2])
	}
	return errors.New("wrong usage")
}

func verify(logKey, witnessKey string, files []string) error {
	log, err := note.NewVerifier(logKey)
	if err != nil {
		return err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		checkpoint, err := opened(raw, log, witnessKey)
		if err != nil {
			return err
		}
		fmt.Println(checkpoint.N)
	}
	return nil
}

func opened(raw []byte, log note.Verifier, witnessKey string) (torchwood.Checkpoint, error) {
	witness, err := fnote.NewVerifierForCosignatureV1(witnessKey)
	if err != nil {
		return torchwood.Checkpoint{}, err
	}
	n, err := note.Open(raw, note.VerifierList(log, witness))
	if err != nil {
		return torchwood.Checkpoint{}, err
	}
	if len(n.Sigs) != 2 {
		return torchwood.Checkpoint{}, fmt.Errorf("%d of the 2 signatures are valid", len(n.Sigs))
	}
	return torchwood.ParseCheckpoint(n.Text)
}

// keys returns a key that is always the same, so that the witness can be told of it before.
func keys() (string, string, error) {
	return note.GenerateKey(bytes.NewReader(make([]byte, 64)), origin)
}

type hashes []tlog.Hash

func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		found[i] = h[index]
	}
	return found, nil
}

func drive(url, witnessKey string) error {
	private, public, err := keys()
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return err
	}
	log, err := note.NewVerifier(public)
	if err != nil {
		return err
	}
	var stored hashes
	var old int64
	for _, size := range []int64{1, 2, 3, 7, 8, 256, 257, 1000} {
		for n := int64(len(leaves(stored))); n < size; n++ {
			more, err := tlog.StoredHashes(n, fmt.Appendf(nil, "leaf %d", n), stored)
			if err != nil {
				return err
			}
			stored = append(stored, more...)
		}
		root, err := tlog.TreeHash(size, stored)
		if err != nil {
			return err
		}
		text := torchwood.Checkpoint{Origin: origin, Tree: tlog.Tree{N: size, Hash: root}}.String()
		signed, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			return err
		}
		status, answer, err := post(url, request(old, size, stored, signed))
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("at %d: status %d, %s %w", size, status, answer, err)
		}
		if _, err := opened(append(bytes.Clone(signed), answer...), log, witnessKey); err != nil {
			return fmt.Errorf("at %d: %w", size, err)
		}
		if status, answer, err = post(url, request(old, size, stored, signed)); err != nil || status != 409 ||
			string(answer) != fmt.Sprintf("%d\n", size) {
			return fmt.Errorf("the same again at %d: status %d, %s %w", size, status, answer, err)
		}
		forked := torchwood.Checkpoint{Origin: origin, Tree: tlog.Tree{N: size, Hash: sha256.Sum256([]byte("fork"))}}
		if signed, err = note.Sign(&note.Note{Text: forked.String()}, signer); err != nil {
			return err
		}
		if status, answer, err = post(url, request(size, size, stored, signed)); err != nil || status != 422 {
			return fmt.Errorf("a fork at %d: status %d, %s %w", size, status, answer, err)
		}
		old = size
	}
	fmt.Println(old)
	return nil
}

// leaves returns as many elements as there are leaves.
func leaves(stored hashes) []struct{} {
	n := int64(0)
	for tlog.StoredHashCount(n) < int64(len(stored)) {
		n++
	}
	return make([]struct{}, n)
}

func request(old, size int64, stored hashes, signed []byte) []byte {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", old)
	if old > 0 && old < size {
		proof, err := tlog.ProveTree(size, old, stored)
		if err != nil {
			panic(err)
		}
		for _, hash := range proof {
			fmt.Fprintln(&body, base64.StdEncoding.EncodeToString(hash[:]))
		}
	}
	fmt.Fprintf(&body, "\n%s", signed)
	return body.Bytes()
}

func post(url string, body []byte) (int, []byte, error) {
	response, err := http.Post(url+"/add-checkpoint", "text/plain", bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 65536))
	return response.StatusCode, answer, err
}
