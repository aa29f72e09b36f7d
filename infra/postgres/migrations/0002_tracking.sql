-- How far a synchronous application has processed another's events, as the eventsourcing library counts it. Our own
-- views keep their positions in view_positions; this table is the library's alone.

CREATE TABLE tracking (
    ledger_id       int NOT NULL REFERENCES ledgers,
    application     text NOT NULL,
    position        bigint NOT NULL,
    PRIMARY KEY (ledger_id, application)
);

ALTER TABLE tracking ENABLE ROW LEVEL SECURITY;
ALTER TABLE tracking FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON tracking TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON tracking TO sparkledger_worker
    USING (true);
GRANT SELECT, INSERT, UPDATE ON tracking TO sparkledger_api, sparkledger_worker;
