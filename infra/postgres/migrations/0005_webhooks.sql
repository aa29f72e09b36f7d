-- Webhooks: where events are sent to, how far each has come, what is still to be sent again, and what was tried.

CREATE TABLE webhooks (
    webhook_id      uuid PRIMARY KEY,
    ledger_id       int NOT NULL REFERENCES ledgers,
    -- The API key that it belongs to: it receives nothing any more once that is not valid.
    key_id          uuid NOT NULL REFERENCES api_keys,
    -- Sealed under a key derived from the ledger's, as the secrets below: a URL may hold a secret, too.
    url             bytea NOT NULL CHECK (octet_length(url) <= 2048 + 28),
    description     bytea,
    -- Empty: events of every type, of every creator.
    types           text[] NOT NULL DEFAULT '{}',
    creator_ids     text[] NOT NULL DEFAULT '{}',
    -- And the one before it, which signs beside it until it ends.
    secret          bytea NOT NULL,
    old_secret      bytea,
    old_secret_until timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    disabled        text CHECK (disabled IN ('asked', 'gone', 'failing', 'key')),
    disabled_at     timestamptz,
    -- Counts the changes, and what else a sender must look at, so that it notices.
    revision        int NOT NULL DEFAULT 1,
    -- Counts what makes the past of its receiver void: another URL, and being enabled again.
    resumed         int NOT NULL DEFAULT 0,
    -- Counts the times that its owner moved it, the last time to the position after which it sends.
    moved           int NOT NULL DEFAULT 0,
    moved_to        bigint,
    -- Counts the times that its owner asked for all retries at once.
    retried         int NOT NULL DEFAULT 0,
    CHECK ((disabled IS NULL) = (disabled_at IS NULL)),
    CHECK ((old_secret IS NULL) = (old_secret_until IS NULL))
);
CREATE INDEX webhooks_of_ledger ON webhooks (ledger_id, webhook_id);

-- Written by senders, several times a second while there is something to send.
CREATE TABLE webhook_progress (
    webhook_id      uuid PRIMARY KEY REFERENCES webhooks ON DELETE CASCADE,
    ledger_id       int NOT NULL,
    -- Everything up to here was delivered, was not asked for, or stands in webhook_messages.
    position        bigint NOT NULL,
    -- Raised by each sender that takes over: one that does not know yet that it lost its place changes nothing more.
    lease           bigint NOT NULL DEFAULT 0,
    -- The number of what its sender wrote last: that is not written again where only the reply was lost.
    written         bigint NOT NULL DEFAULT 0,
    -- The webhook's count that the pause, and when messages are due, belong to: with another one they are void.
    resumed         int NOT NULL DEFAULT 0,
    -- The webhook's count of moves that the position belongs to.
    moved           int NOT NULL DEFAULT 0,
    -- The receiver asked not to be sent anything before.
    paused_until    timestamptz,
    -- Attempts that failed since one succeeded.
    failures        int NOT NULL DEFAULT 0,
    delivered       bigint NOT NULL DEFAULT 0,
    failed          bigint NOT NULL DEFAULT 0,
    delivered_at    timestamptz,
    failed_at       timestamptz,
    error           text
) WITH (fillfactor = 20);

-- What was not delivered at once: waiting for its next attempt, or dead after the last.
CREATE TABLE webhook_messages (
    webhook_id      uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    ledger_id       int NOT NULL,
    message_id      uuid NOT NULL,
    -- Absent for a test.
    position        bigint,
    type            text NOT NULL,
    -- Messages of one lane are sent in order, each after the one before it was settled: a code's, or a creator's.
    lane            uuid NOT NULL,
    dead            boolean NOT NULL DEFAULT false,
    -- Its owner asked for it again: it is sent in a lane of replays, after newer events, and at once.
    replayed        boolean NOT NULL DEFAULT false,
    attempts        int NOT NULL DEFAULT 0,
    first_at        timestamptz,
    next_at         timestamptz NOT NULL DEFAULT now(),
    status          int,
    error           text,
    -- When a sender wrote it down last: since then what is dead is dead.
    noted_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (webhook_id, message_id)
);
CREATE INDEX webhook_messages_in_order ON webhook_messages (webhook_id, dead, position);

-- Every attempt: when, what came of it, how long it took; and the beginning of the answer, sealed like the URL, for a
-- receiver may repeat anything in it. What was sent is made again from the event.
CREATE TABLE webhook_attempts (
    webhook_id      uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    attempt_id      bigint GENERATED ALWAYS AS IDENTITY,
    ledger_id       int NOT NULL,
    message_id      uuid NOT NULL,
    position        bigint,
    type            text NOT NULL,
    attempt         int NOT NULL,
    at              timestamptz NOT NULL,
    outcome         text NOT NULL CHECK (outcome IN ('delivered', 'failed', 'dead', 'disabled')),
    status          int,
    error           text,
    duration_ms     int NOT NULL,
    answer          bytea,
    PRIMARY KEY (webhook_id, attempt_id)
);
CREATE INDEX webhook_attempts_at ON webhook_attempts USING brin (at);

-- Requests about webhooks that carried an Idempotency-Key, and what they were answered; never a secret.
CREATE TABLE webhook_requests (
    ledger_id       int NOT NULL,
    key             bytea NOT NULL,
    request_hash    bytea NOT NULL,
    told            jsonb,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (ledger_id, key)
);
CREATE INDEX webhook_requests_recorded ON webhook_requests USING brin (recorded_at);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['webhooks', 'webhook_progress', 'webhook_messages', 'webhook_attempts',
                                'webhook_requests'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$CREATE POLICY one_ledger ON %I TO sparkledger_api
            USING (ledger_id = (SELECT bound_ledger()))$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;

GRANT SELECT ON webhooks, webhook_progress, webhook_messages, webhook_attempts, webhook_requests
    TO sparkledger_api, sparkledger_worker;
GRANT SELECT ON webhooks, webhook_progress, webhook_messages TO sparkledger_log;
GRANT INSERT, UPDATE, DELETE ON webhooks TO sparkledger_api;
GRANT INSERT ON webhook_progress TO sparkledger_api;
GRANT INSERT, UPDATE, DELETE ON webhook_messages TO sparkledger_api;
GRANT INSERT, UPDATE (told) ON webhook_requests TO sparkledger_api;
GRANT UPDATE (disabled, disabled_at, revision) ON webhooks TO sparkledger_worker;
GRANT UPDATE ON webhook_progress TO sparkledger_worker;
GRANT INSERT, UPDATE, DELETE ON webhook_messages TO sparkledger_worker;
GRANT INSERT, DELETE ON webhook_attempts TO sparkledger_worker;
GRANT DELETE ON webhook_requests TO sparkledger_worker;

-- For metrics, which are of the whole service: ids alone tell nobody whose webhook it is.
CREATE FUNCTION webhook_lag(at_most int)
RETURNS TABLE (webhook_id uuid, disabled boolean, last_position bigint, waiting bigint, oldest timestamptz,
               unsettled bigint, dead bigint, failures int, delivered bigint, failed bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT w.webhook_id, w.disabled IS NOT NULL, p.position, greatest(h.head - p.position, 0), n.recorded_at,
           m.waiting, m.dead, p.failures, p.delivered, p.failed
    FROM webhooks w
    JOIN webhook_progress p ON p.webhook_id = w.webhook_id
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS head FROM events e WHERE e.ledger_id = w.ledger_id
    ) h
    LEFT JOIN events n ON n.ledger_id = w.ledger_id AND n.position = p.position + 1
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE NOT dead) AS waiting, count(*) FILTER (WHERE dead) AS dead
        FROM webhook_messages m WHERE m.webhook_id = w.webhook_id
    ) m
    ORDER BY w.webhook_id
    LIMIT at_most
$$;
GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION webhook_lag OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION webhook_lag FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhook_lag TO sparkledger_api, sparkledger_worker;
