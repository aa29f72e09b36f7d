-- What the expiry clock has done and has before it, of all ledgers together, for the API's metrics: one row.

CREATE TABLE expiry_clock (
    only_row        boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    expiries        bigint NOT NULL DEFAULT 0,
    reminders       bigint NOT NULL DEFAULT 0,
    -- Attempts that recorded nothing because of a defect or an unreadable stream; and codes that wait for another.
    failures        bigint NOT NULL DEFAULT 0,
    failing         int NOT NULL DEFAULT 0,
    -- When the first thing not recorded yet is due, past or ahead: once it is past, the clock is late.
    next_due_at     timestamptz
);
INSERT INTO expiry_clock DEFAULT VALUES;

GRANT SELECT ON expiry_clock TO sparkledger_api, sparkledger_worker;
GRANT UPDATE ON expiry_clock TO sparkledger_worker;
