-- What the master key wraps, which one it is, and the erasure of a creator.

-- The master keys that keys of this database are or were wrapped with, by short ids that tell nothing of them. Of no
-- ledger. Every wrapped key begins with the eight bytes of such an id.
CREATE TABLE master_keys (
    master_key_id   text PRIMARY KEY CHECK (master_key_id ~ '^[0-9a-f]{16}$'),
    -- The one that whatever is wrapped now is wrapped with.
    present         boolean NOT NULL,
    since           timestamptz NOT NULL DEFAULT now(),
    -- When nothing was wrapped with it any more, and another had taken its place.
    released_at     timestamptz,
    CHECK (NOT (present AND released_at IS NOT NULL))
);
CREATE UNIQUE INDEX one_present_master_key ON master_keys (present) WHERE present;
GRANT SELECT ON master_keys TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE (present, since, released_at) ON master_keys TO sparkledger_worker;
GRANT UPDATE (released_at) ON master_keys TO sparkledger_log; -- a row lock asks for it; no statement uses it

-- Keys of the whole database, by what they are for: so far the one that API keys are hashed with.
CREATE TABLE shared_keys (
    purpose         text PRIMARY KEY,
    wrapped         bytea NOT NULL
);
GRANT SELECT ON shared_keys TO sparkledger_api, sparkledger_worker;
GRANT INSERT, UPDATE (wrapped) ON shared_keys TO sparkledger_worker;

-- A creator who was erased has no key any more, and gets none: the row stays without it.
ALTER TABLE creator_keys
    ALTER COLUMN wrapped DROP NOT NULL,
    ADD COLUMN erased_at timestamptz,
    ADD CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL));
-- The bytes of a destroyed key stay in its block until it is vacuumed: that must not wait for many others.
ALTER TABLE creator_keys SET (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);

-- A rotation wraps anew; it never makes, moves or brings back a key.
GRANT UPDATE (fingerprint_key) ON ledgers TO sparkledger_worker;
GRANT UPDATE (wrapped) ON creator_keys TO sparkledger_worker;

-- A process that has not heard of a rotation must not store a key that the next one would not look for. Whoever stores
-- one holds the present master key's row until its commit, and a rotation waits for that before it begins to look.
CREATE FUNCTION wrapped_with_the_present_master_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    expected bytea;
    wrapped bytea;
    name text;
BEGIN
    SELECT decode(m.master_key_id, 'hex') INTO expected FROM master_keys m WHERE m.present FOR SHARE;
    IF NOT FOUND AND NOT EXISTS (SELECT 1 FROM master_keys) THEN
        RETURN NEW;
    END IF;
    FOREACH name IN ARRAY TG_ARGV LOOP
        EXECUTE format('SELECT ($1).%I', name) INTO wrapped USING NEW;
        IF substring(wrapped FROM 1 FOR 8) IS DISTINCT FROM expected AND wrapped IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'the master key is being replaced: this key is not wrapped with the present one';
        END IF;
    END LOOP;
    RETURN NEW;
END $$;
CREATE TRIGGER wrapped_with_the_present_master_key BEFORE INSERT OR UPDATE OF fingerprint_key ON ledgers
    FOR EACH ROW EXECUTE FUNCTION wrapped_with_the_present_master_key('fingerprint_key');
CREATE TRIGGER wrapped_with_the_present_master_key BEFORE INSERT OR UPDATE OF wrapped ON creator_keys
    FOR EACH ROW EXECUTE FUNCTION wrapped_with_the_present_master_key('wrapped');
CREATE TRIGGER wrapped_with_the_present_master_key BEFORE INSERT OR UPDATE OF wrapped ON shared_keys
    FOR EACH ROW EXECUTE FUNCTION wrapped_with_the_present_master_key('wrapped');

-- Erasures that were carried out. The event comes first and says who and why; this is the deed.
CREATE TABLE erasures (
    ledger_id       int NOT NULL,
    position        bigint NOT NULL,
    creator_stream  uuid NOT NULL,
    carried_out_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger_id, position)
);
ALTER TABLE erasures ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasures FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON erasures TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON erasures TO sparkledger_worker, sparkledger_log USING (true);
GRANT SELECT ON erasures TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT ON erasures TO sparkledger_log;
GRANT UPDATE (wrapped, erased_at), INSERT ON creator_keys TO sparkledger_log;
GRANT UPDATE (name, sealed_subject, revoked_at) ON api_keys TO sparkledger_log;

-- Which erasures are recorded: looked through for those that nobody carried out yet.
CREATE INDEX events_erasures ON events (ledger_id, position) WHERE type = 'CreatorErased';

-- Destroy an erased creator's key for good, and what else the database knows of the person: what API keys that act for
-- erased creators alone are called, whose tokens they stand for, and where their refused attempts came from. It does
-- nothing unless the log says that the creator is erased, so no role of the program can destroy anything else with it;
-- again, it changes nothing. `of_creator` is the keyed hash that the creator is claimed and keyed by. Answers the
-- destroyed key's id; null where nobody is erased.
--
-- Whoever makes a key, or writes down a bearer or where an attempt came from, shares the lock (infra/callers/erased.py):
-- what was begun before is found here, and what begins after finds the erasure.
CREATE FUNCTION carry_out_erasure(of_ledger int, of_creator bytea) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    recorded record;
    erased text[];
    theirs uuid[];
BEGIN
    IF of_ledger IS DISTINCT FROM bound_ledger() THEN
        RETURN NULL; -- as row-level security has it, which this function's owner is not under
    END IF;
    SELECT e.position, e.stream_id, convert_from(e.body, 'UTF8')::jsonb ->> 'creator_id' AS creator_id INTO recorded
    FROM claims c
    JOIN events e ON e.ledger_id = c.ledger_id AND e.stream_id = c.stream_id AND e.type = 'CreatorErased'
    WHERE c.ledger_id = of_ledger AND c.claim = of_creator;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(7290121, of_ledger);
    INSERT INTO creator_keys AS k (ledger_id, key_id, creator, wrapped, erased_at)
    VALUES (of_ledger, gen_random_uuid(), of_creator, NULL, clock_timestamp())
    ON CONFLICT (ledger_id, creator) DO UPDATE
    SET wrapped = NULL, erased_at = excluded.erased_at
    WHERE k.erased_at IS NULL;
    SELECT array_agg(convert_from(e.body, 'UTF8')::jsonb ->> 'creator_id') INTO erased
    FROM events e
    WHERE e.ledger_id = of_ledger AND e.type = 'CreatorErased';
    SELECT array_agg(k.key_id) INTO theirs
    FROM api_keys k
    WHERE k.ledger_id = of_ledger AND k.role = 'creator'
    AND k.creator_ids @> ARRAY[recorded.creator_id] AND k.creator_ids <@ erased;
    UPDATE api_keys k
    SET name = NULL, sealed_subject = NULL, revoked_at = coalesce(k.revoked_at, clock_timestamp())
    WHERE k.key_id = ANY (theirs)
    AND (k.name IS NOT NULL OR k.sealed_subject IS NOT NULL OR k.revoked_at IS NULL);
    UPDATE accesses a
    SET sealed = NULL
    WHERE a.ledger_id = of_ledger AND a.key_id = ANY (theirs) AND a.sealed IS NOT NULL;
    INSERT INTO erasures (ledger_id, position, creator_stream)
    VALUES (of_ledger, recorded.position, recorded.stream_id)
    ON CONFLICT DO NOTHING;
    RETURN (SELECT k.key_id FROM creator_keys k WHERE k.ledger_id = of_ledger AND k.creator = of_creator);
END $$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION wrapped_with_the_present_master_key OWNER TO sparkledger_log;
ALTER FUNCTION carry_out_erasure OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION carry_out_erasure FROM PUBLIC;
-- A worker's deed alone: what the API's login could do, whoever stole it could.
GRANT EXECUTE ON FUNCTION carry_out_erasure TO sparkledger_worker;

-- A destroyed key goes from the memory of every process, too, and not only out of use.
CREATE TRIGGER keys_changed AFTER UPDATE ON creator_keys
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_keys();
