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
GRANT INSERT, UPDATE (present, since, released_at) ON master_keys TO sparkledger_log;

-- Keys of the whole database, by what they are for: so far the one that API keys are hashed with.
CREATE TABLE shared_keys (
    purpose         text PRIMARY KEY,
    wrapped         bytea NOT NULL
);
GRANT SELECT ON shared_keys TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT ON shared_keys TO sparkledger_worker;
GRANT UPDATE (wrapped) ON shared_keys TO sparkledger_log;

-- The epochs of creators' keys. Each stored key is sealed under the master key, and once more under the key of an epoch,
-- which is a file outside the database. An erasure ends the epoch: the other creators' keys are sealed under the next
-- one, and the file is destroyed. Copies of a destroyed row, in the write-ahead log and in backups, then open no more.
CREATE TABLE key_epochs (
    number          int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    epoch_id        text NOT NULL UNIQUE CHECK (epoch_id ~ '^[0-9a-f]{16}$'),
    present         boolean NOT NULL,
    began_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    destroyed_at    timestamptz,
    CHECK (NOT (present AND destroyed_at IS NOT NULL))
);
CREATE UNIQUE INDEX one_present_epoch ON key_epochs (present) WHERE present;
GRANT SELECT ON key_epochs TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE (present, destroyed_at) ON key_epochs TO sparkledger_log;

-- A creator who was erased has no key any more, and gets none: the row stays without it.
ALTER TABLE creator_keys
    ALTER COLUMN wrapped DROP NOT NULL,
    ADD COLUMN erased_at timestamptz,
    ADD CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL));
-- The bytes of a destroyed key stay in its block until it is vacuumed: that must not wait for many others.
ALTER TABLE creator_keys SET (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);

-- A key is made once, and not as an erased one; what is stored of it changes only through the functions below.
REVOKE INSERT ON creator_keys FROM sparkledger_api, sparkledger_worker;
GRANT INSERT (ledger_id, key_id, creator, wrapped) ON creator_keys TO sparkledger_api, sparkledger_worker;
GRANT UPDATE (fingerprint_key) ON ledgers TO sparkledger_log;

-- A process that has not heard of a rotation must not store a key that the next one would not look for. A process that stores
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

-- The same for epochs: anyone who stores a creator's key holds the present epoch's row until its commit.
CREATE FUNCTION sealed_in_the_present_epoch() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    expected bytea;
BEGIN
    SELECT decode(e.epoch_id, 'hex') INTO expected FROM key_epochs e WHERE e.present FOR SHARE;
    IF substring(NEW.wrapped FROM 9 FOR 8) IS DISTINCT FROM expected THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'an erasure is being carried out: this key is not sealed in the present epoch';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER sealed_in_the_present_epoch BEFORE INSERT OR UPDATE OF wrapped ON creator_keys
    FOR EACH ROW WHEN (NEW.wrapped IS NOT NULL) EXECUTE FUNCTION sealed_in_the_present_epoch();

-- Name the master key that is used from now on. Any worker names the first one; after that, the owner alone does.
CREATE FUNCTION name_master_key(named text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM master_keys) THEN
        INSERT INTO master_keys (master_key_id, present) VALUES (named, true) ON CONFLICT DO NOTHING;
    ELSIF is_owner() THEN
        UPDATE master_keys SET present = false WHERE present AND master_key_id <> named;
        INSERT INTO master_keys AS m (master_key_id, present) VALUES (named, true)
        ON CONFLICT (master_key_id) DO UPDATE SET present = true, since = now(), released_at = NULL
        WHERE NOT m.present;
    ELSIF NOT EXISTS (SELECT FROM master_keys m WHERE m.present AND m.master_key_id = named) THEN
        RAISE insufficient_privilege USING MESSAGE = 'only the owner of the tables replaces the master key';
    END IF;
END $$;

-- Store keys that a rotation, or a new epoch, has wrapped again: each only where the row still has what was read. The
-- trigger sees to it that they are wrapped with what is present. A rotation is the owner's. A worker may only bring a
-- creator's key from an earlier epoch into the present one, under the same master key: so anyone who steals its login
-- cannot write over keys while no erasure is being carried out.
CREATE FUNCTION rewrap_keys(of_table text, of_ledger int[], of_key text[], old bytea[], fresh bytea[]) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    owner boolean := is_owner();
    present bytea := (SELECT decode(e.epoch_id, 'hex') FROM key_epochs e WHERE e.present);
    changed int := 0;
BEGIN
    IF of_table = 'creator_keys' THEN
        UPDATE creator_keys k SET wrapped = fresh[i]
        FROM generate_series(1, cardinality(old)) i
        WHERE k.ledger_id = of_ledger[i] AND k.key_id = of_key[i]::uuid AND k.wrapped = old[i]
        AND octet_length(fresh[i]) = octet_length(old[i])
        AND (owner OR (substring(fresh[i] FROM 1 FOR 8) = substring(old[i] FROM 1 FOR 8)
                       AND substring(old[i] FROM 9 FOR 8) <> present));
    ELSIF NOT owner THEN
        RAISE insufficient_privilege USING MESSAGE = 'only the owner of the tables wraps keys with another master key';
    ELSIF of_table = 'ledgers' THEN
        UPDATE ledgers l SET fingerprint_key = fresh[i]
        FROM generate_series(1, cardinality(old)) i
        WHERE l.ledger_id = of_ledger[i] AND l.fingerprint_key = old[i];
    ELSE
        UPDATE shared_keys s SET wrapped = fresh[i]
        FROM generate_series(1, cardinality(old)) i
        WHERE s.purpose = of_key[i] AND s.wrapped = old[i];
    END IF;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END $$;

-- The master keys that nothing is wrapped with any more have been replaced.
CREATE FUNCTION release_master_keys() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF is_owner() THEN
        UPDATE master_keys SET released_at = now() WHERE NOT present AND released_at IS NULL;
    END IF;
END $$;

-- Erasures whose key is gone from its table. The event comes first and says who and why; this is the deed. It is carried
-- out once the key of the epoch that was present then, and those of all before, are destroyed.
CREATE TABLE erasures (
    ledger_id       int NOT NULL,
    position        bigint NOT NULL,
    creator_stream  uuid NOT NULL,
    removed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    epoch           int NOT NULL,
    carried_out_at  timestamptz,
    PRIMARY KEY (ledger_id, position)
);
CREATE INDEX erasures_under_way ON erasures (epoch) WHERE carried_out_at IS NULL;
ALTER TABLE erasures ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasures FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON erasures TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON erasures TO sparkledger_worker, sparkledger_log USING (true);
GRANT SELECT ON erasures TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE (carried_out_at) ON erasures TO sparkledger_log;
GRANT UPDATE (wrapped, erased_at), INSERT ON creator_keys TO sparkledger_log;
GRANT UPDATE (name, sealed_subject, revoked_at) ON api_keys TO sparkledger_log;

-- Which erasures are recorded: looked through for those that nobody carried out yet.
CREATE INDEX events_erasures ON events (ledger_id, position) WHERE type = 'CreatorErased';

-- Remove an erased creator's key for good, and what else the database knows of the person: what API keys that act for
-- erased creators alone are called, whose tokens they stand for, and where their refused attempts came from. It does
-- nothing unless the log says that the creator is erased, so no role of the program can remove anything else with it;
-- again, it changes nothing. `of_creator` is the keyed hash that the creator is claimed and keyed by. Answers the
-- removed key's id; null where nobody is erased.
--
-- Anyone who makes a key, or writes down a bearer or where an attempt came from, shares the lock
-- (infra/auth/erasure_lock.py): what was begun before is found here, and what begins after finds the erasure.
CREATE FUNCTION carry_out_erasure(of_ledger int, of_creator bytea) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    recorded record;
    erased text[];
    theirs uuid[];
    present_epoch int;
    made uuid := gen_random_uuid();
    removed uuid;
BEGIN
    IF of_ledger IS DISTINCT FROM bound_ledger() THEN
        RETURN NULL; -- as row-level security has it, which this function's owner is not under
    END IF;
    -- Keys name creators by the canonical forms of their ids.
    SELECT e.position, e.stream_id, lower(e.creator_id) AS creator_id
    INTO recorded
    FROM claims c
    JOIN events e ON e.ledger_id = c.ledger_id AND e.stream_id = c.stream_id AND e.type = 'CreatorErased'
    WHERE c.ledger_id = of_ledger AND c.claim = of_creator;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(7290121, of_ledger);
    -- A new epoch waits for this, so that it begins with or without the key.
    SELECT e.number INTO present_epoch FROM key_epochs e WHERE e.present FOR SHARE;
    INSERT INTO creator_keys AS k (ledger_id, key_id, creator, wrapped, erased_at)
    VALUES (of_ledger, made, of_creator, NULL, clock_timestamp())
    ON CONFLICT (ledger_id, creator) DO UPDATE
    SET wrapped = NULL, erased_at = excluded.erased_at
    WHERE k.erased_at IS NULL
    RETURNING k.key_id INTO removed;
    SELECT array_agg(lower(e.creator_id)) INTO erased
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
    INSERT INTO erasures (ledger_id, position, creator_stream, epoch, carried_out_at)
    VALUES (of_ledger, recorded.position, recorded.stream_id, coalesce(present_epoch, 0),
            -- If there was no key, no copy of one is anywhere; but a sheet that was to be imported may name the person.
            CASE WHEN removed = made AND NOT EXISTS (SELECT FROM import_runs r WHERE r.ledger_id = of_ledger)
                THEN clock_timestamp() END)
    ON CONFLICT DO NOTHING;
    RETURN (SELECT k.key_id FROM creator_keys k WHERE k.ledger_id = of_ledger AND k.creator = of_creator);
END $$;

-- Begin an epoch: the first one, or another where an erasure waits for the present one's end. Answers the present one.
-- It waits for anyone who is storing a key, or removing one; the key of `fresh` is on disk already.
CREATE FUNCTION begin_key_epoch(fresh text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    present_epoch int;
BEGIN
    IF NOT EXISTS (SELECT FROM key_epochs) THEN
        INSERT INTO key_epochs (epoch_id, present) VALUES (fresh, true) ON CONFLICT DO NOTHING;
    ELSE
        SELECT e.number INTO present_epoch FROM key_epochs e WHERE e.present FOR NO KEY UPDATE;
        IF EXISTS (SELECT FROM erasures d WHERE d.carried_out_at IS NULL AND d.epoch >= present_epoch) THEN
            UPDATE key_epochs SET present = false WHERE present;
            INSERT INTO key_epochs (epoch_id, present) VALUES (fresh, true);
        END IF;
    END IF;
    RETURN (SELECT e.epoch_id FROM key_epochs e WHERE e.present);
END $$;

-- Record that the keys of ended epochs were destroyed, and which erasures that carries out.
CREATE FUNCTION end_key_epochs(destroyed text[]) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    done int;
BEGIN
    IF EXISTS (
        SELECT FROM key_epochs e
        WHERE e.epoch_id = ANY (destroyed)
        AND (e.present OR EXISTS (
            SELECT FROM creator_keys k WHERE substring(k.wrapped FROM 9 FOR 8) = decode(e.epoch_id, 'hex')
        ))
    ) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'keys of creators are still sealed in this epoch';
    END IF;
    UPDATE key_epochs SET destroyed_at = clock_timestamp()
    WHERE epoch_id = ANY (destroyed) AND destroyed_at IS NULL;
    UPDATE erasures SET carried_out_at = clock_timestamp()
    WHERE carried_out_at IS NULL
    AND epoch < (SELECT min(e.number) FROM key_epochs e WHERE e.destroyed_at IS NULL);
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END $$;

-- A worker's deeds alone: what the API's login could do, anyone who stole it could.
GRANT CREATE ON SCHEMA public TO sparkledger_log;
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['carry_out_erasure', 'begin_key_epoch', 'end_key_epochs', 'rewrap_keys',
                                'name_master_key', 'release_master_keys'] LOOP
        EXECUTE format('ALTER FUNCTION %I OWNER TO sparkledger_log', name);
        EXECUTE format('REVOKE ALL ON FUNCTION %I FROM PUBLIC', name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %I TO sparkledger_worker', name);
    END LOOP;
END $$;
ALTER FUNCTION wrapped_with_the_present_master_key OWNER TO sparkledger_log;
ALTER FUNCTION sealed_in_the_present_epoch OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;

-- A removed key goes from the memory of every process, too, and not only out of use.
CREATE TRIGGER keys_changed AFTER UPDATE OF erased_at ON creator_keys
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_keys();
