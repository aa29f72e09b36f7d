-- Denied attempts are few among the accesses of a ledger, and are listed by themselves.
CREATE INDEX accesses_refused ON accesses (ledger_id, access_id) WHERE refused IS NOT NULL;
