// Verifies receipts with torchwood alone: a file as c2sp.org/tlog-proof, under a policy as c2sp.org/tlog-policy.
//
//	receipts POLICY ENTRY PROOF   prints ok, or why not
package main

import (
	"errors"
	"fmt"
	"os"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
	fmt.Println("ok")
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("wrong usage")
	}
	var files [3][]byte
	for i, name := range args {
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files[i] = content
	}
	policy, err := torchwood.ParsePolicy(files[0])
	if err != nil {
		return err
	}
	return torchwood.VerifyProof(policy, tlog.RecordHash(files[1]), files[2])
}
