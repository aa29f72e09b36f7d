-- Imports that the worker carries out: the sheet as it was sent, sealed, until its import ends; how far it is; its report.

CREATE TABLE import_runs (
    import_id       uuid PRIMARY KEY,
    ledger_id       int NOT NULL REFERENCES ledgers,
    -- The key that sent it, and in which role: the actor of its events.
    key_id          uuid NOT NULL REFERENCES api_keys,
    role            text NOT NULL CHECK (role IN ('operator', 'admin')),
    -- How the sheet is read: the parameters of the request, what its mapping said, and what was allowed then.
    asked           jsonb NOT NULL CHECK (octet_length(asked::text) <= 32768),
    file_sha256     text NOT NULL,
    bytes           int NOT NULL CHECK (bytes >= 0),
    -- The key of the pieces of the sheet, sealed in the present epoch: after an erasure no copy of them opens.
    sealed_key      bytea,
    rows            int NOT NULL,
    state           text NOT NULL DEFAULT 'waiting'
                    CHECK (state IN ('waiting', 'running', 'ended', 'failed', 'cancelled')),
    rows_done       int NOT NULL DEFAULT 0,
    -- How many rows had each fate.
    counts          jsonb NOT NULL DEFAULT '{}',
    -- Why it failed or was cancelled.
    error           text,
    -- How often a worker has begun it or gone on with it, and how often since a row was last done.
    starts          int NOT NULL DEFAULT 0,
    vain_starts     int NOT NULL DEFAULT 0,
    -- When it was last begun or gone on with; and not before when again, where something was away then.
    tried_at        timestamptz,
    retry_at        timestamptz,
    cancelled_by    uuid REFERENCES api_keys,
    requested_at    timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    ended_at        timestamptz,
    UNIQUE (import_id, ledger_id),
    CHECK ((ended_at IS NULL) = (state IN ('waiting', 'running'))),
    CHECK ((sealed_key IS NULL) = (ended_at IS NOT NULL))
);
CREATE INDEX import_runs_of_ledger ON import_runs (ledger_id, import_id);
CREATE INDEX import_runs_open ON import_runs (ledger_id, requested_at) WHERE ended_at IS NULL;
CREATE INDEX import_runs_ended ON import_runs (ledger_id, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX import_runs_failed ON import_runs (ledger_id) WHERE state = 'failed';
CREATE INDEX import_runs_of_key ON import_runs (key_id);

-- Pieces of the sheet, until the import ends, and of its report.
CREATE TABLE import_parts (
    import_id       uuid NOT NULL,
    ledger_id       int NOT NULL REFERENCES ledgers,
    kind            text NOT NULL CHECK (kind IN ('sheet', 'report')),
    number          int NOT NULL,
    sealed          bytea NOT NULL,
    PRIMARY KEY (import_id, kind, number),
    -- Both, so that no ledger adds to another's import.
    FOREIGN KEY (import_id, ledger_id) REFERENCES import_runs (import_id, ledger_id) ON DELETE CASCADE
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['import_runs', 'import_parts'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$CREATE POLICY one_ledger ON %I TO sparkledger_api
            USING (ledger_id = (SELECT bound_ledger()))$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO sparkledger_mover', name);
        EXECUTE format('CREATE POLICY moves ON %I TO sparkledger_mover USING (true)', name);
        EXECUTE format(
            'CREATE POLICY deletes_copies ON %1$I AS RESTRICTIVE FOR DELETE TO sparkledger_mover USING (EXISTS ('
            'SELECT FROM ledgers l WHERE l.ledger_id = %1$I.ledger_id AND l.served_by IS NOT NULL))', name);
    END LOOP;
END $$;
-- With an import that has ended nobody records any more, so none is opened again.
CREATE POLICY stays_ended ON import_runs AS RESTRICTIVE FOR UPDATE TO sparkledger_worker
    USING (ended_at IS NULL) WITH CHECK (true);

GRANT SELECT ON import_runs, import_parts TO sparkledger_api, sparkledger_worker;
GRANT SELECT, INSERT, UPDATE (sealed_key, state, error, retry_at, cancelled_by, ended_at) ON import_runs TO sparkledger_log;
GRANT SELECT, DELETE ON import_parts TO sparkledger_log;
GRANT INSERT ON import_parts TO sparkledger_api;
GRANT DELETE, UPDATE (sealed_key, state, rows_done, counts, error, starts, vain_starts, tried_at, retry_at, started_at,
    ended_at) ON import_runs TO sparkledger_worker;
GRANT INSERT, DELETE ON import_parts TO sparkledger_worker;

-- Accept an import from a key that was presented, and that may record: with this, a worker may record in its name, until
-- the import ends. Answers 'accepted'; 'full' where the sheets of all ledgers that wait have a GiB, which those who ask at
-- the same time may together exceed by their own; 'epoch' where an erasure has ended the epoch that its key is sealed in;
-- 'key' where the caller's key is not valid any more.
CREATE FUNCTION accept_import(
    by_key uuid, by_token bytea, of_ledger int, in_role text, new_import uuid, as_asked jsonb, sha256 text, of_bytes int,
    of_rows int, with_key bytea)
RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF of_ledger IS DISTINCT FROM bound_ledger()
        OR NOT (is_owner() OR coalesce(by_token = key_token(of_ledger, by_key), false))
    THEN
        RAISE insufficient_privilege USING MESSAGE = 'an import is accepted from the key that sends it';
    END IF;
    IF of_bytes + (
        SELECT coalesce(sum(r.bytes), 0)
        FROM import_runs r
        JOIN ledgers l ON l.ledger_id = r.ledger_id
        WHERE r.ended_at IS NULL AND l.served_by IS NULL
    ) > 1073741824 THEN
        RETURN 'full';
    END IF;
    -- A new epoch waits for this, and seals the key again.
    PERFORM FROM key_epochs e
    WHERE e.present AND decode(e.epoch_id, 'hex') = substring(with_key FROM 1 FOR 8)
    FOR SHARE;
    IF NOT FOUND THEN
        RETURN 'epoch';
    END IF;
    INSERT INTO import_runs (import_id, ledger_id, key_id, role, asked, file_sha256, bytes, sealed_key, rows)
    SELECT new_import, of_ledger, k.key_id, in_role, as_asked, sha256, of_bytes, with_key, of_rows
    FROM api_keys k
    WHERE k.ledger_id = of_ledger AND k.key_id = by_key
    AND (k.role = in_role OR (k.kind = 'token' AND is_trusted_role(of_ledger, in_role)))
    AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp());
    RETURN CASE WHEN FOUND THEN 'accepted' ELSE 'key' END;
END $$;

-- Cancel an import for a key that is presented: its worker stops at its next note, and one that none has begun ends now,
-- with its sheet. Answers whether there is such an import; null where the key is not valid any more.
CREATE FUNCTION cancel_import(by_key uuid, by_token bytea, of_ledger int, of_import uuid, why text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    found_run record;
BEGIN
    IF of_ledger IS DISTINCT FROM bound_ledger()
        OR NOT (is_owner() OR coalesce(by_token = key_token(of_ledger, by_key), false))
    THEN
        RAISE insufficient_privilege USING MESSAGE = 'an import is cancelled by a key that is presented';
    END IF;
    IF NOT EXISTS (
        SELECT FROM api_keys k
        WHERE k.ledger_id = of_ledger AND k.key_id = by_key AND (k.role IN ('operator', 'admin') OR k.kind = 'token')
        AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
    ) THEN
        RETURN NULL;
    END IF;
    SELECT r.starts, r.ended_at INTO found_run
    FROM import_runs r
    WHERE r.ledger_id = of_ledger AND r.import_id = of_import
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF found_run.ended_at IS NULL AND found_run.starts = 0 THEN
        UPDATE import_runs
        SET state = 'cancelled', cancelled_by = by_key, error = why, ended_at = clock_timestamp(), sealed_key = NULL
        WHERE import_id = of_import;
        DELETE FROM import_parts WHERE import_id = of_import AND kind = 'sheet';
    ELSIF found_run.ended_at IS NULL THEN
        -- If it waits to be tried again, it need not.
        UPDATE import_runs
        SET cancelled_by = coalesce(cancelled_by, by_key), retry_at = NULL
        WHERE import_id = of_import;
    END IF;
    RETURN true;
END $$;

-- Whether a worker may record in the name of a key: while an import is open that was accepted from the key, and only the
-- worker that began it last. It presents the import in place of the key's token: its id, and the number of that start.
-- `append` checks the key itself, as for everyone.
CREATE FUNCTION carries_out_import(of_ledger int, of_key uuid, in_role text, presented bytea) RETURNS boolean
LANGUAGE sql STABLE
RETURN is_worker() AND EXISTS (
    SELECT FROM import_runs r
    WHERE r.ledger_id = of_ledger AND r.ended_at IS NULL AND r.key_id = of_key AND r.role = in_role
    AND r.requested_at > now() - interval '7 days'
    AND uuid_send(r.import_id) || int4send(r.starts) = presented
);

-- Wait until everything is recorded that `append` has accepted for a ledger. What is changed in the same transaction, it
-- sees before it accepts more. So a worker that begins an import, and reads then, misses nothing of the one before.
CREATE FUNCTION after_appends(of_ledger int) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM ledgers l WHERE l.ledger_id = of_ledger AND l.served_by IS NULL FOR NO KEY UPDATE;
END $$;

-- How many imports are open in all ledgers that this server serves, since when, and how many have failed: for metrics.
CREATE FUNCTION import_figures(OUT open bigint, OUT oldest timestamptz, OUT failed bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT count(*) FILTER (WHERE r.ended_at IS NULL), min(r.requested_at) FILTER (WHERE r.ended_at IS NULL),
           count(*) FILTER (WHERE r.state = 'failed')
    FROM import_runs r
    JOIN ledgers l ON l.ledger_id = r.ledger_id
    WHERE (r.ended_at IS NULL OR r.state = 'failed') AND l.served_by IS NULL
$$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION accept_import OWNER TO sparkledger_log;
ALTER FUNCTION cancel_import OWNER TO sparkledger_log;
ALTER FUNCTION after_appends OWNER TO sparkledger_log;
ALTER FUNCTION import_figures OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION accept_import, cancel_import, after_appends, import_figures FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accept_import, cancel_import TO sparkledger_api;
GRANT EXECUTE ON FUNCTION after_appends TO sparkledger_worker;
GRANT EXECUTE ON FUNCTION import_figures TO sparkledger_api, sparkledger_worker;
