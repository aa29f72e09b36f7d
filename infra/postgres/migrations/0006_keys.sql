-- Keys whose text can be changed, identities that come with tokens, and when each of them was used.

ALTER TABLE api_keys
    -- A token's bearer has a row as well: whatever names or revokes a key then does the same for it.
    ADD COLUMN kind text NOT NULL DEFAULT 'key' CHECK (kind IN ('key', 'token')),
    -- Whether it may show secrets again, where its role may.
    ADD COLUMN may_reveal boolean NOT NULL DEFAULT true,
    -- What the issuer calls the bearer, encrypted.
    ADD COLUMN sealed_subject bytea;

-- Whose a request is: by the keyed hash of a key's text, or of a token's issuer and subject. A key has two while a
-- rotation lasts. Those that have ended stay, so that a text which was given up never works again.
CREATE TABLE api_key_hashes (
    hash            bytea PRIMARY KEY,
    ledger_id       int NOT NULL REFERENCES ledgers,
    key_id          uuid NOT NULL REFERENCES api_keys,
    created_at      timestamptz NOT NULL DEFAULT now(),
    ends_at         timestamptz,
    idempotency     bytea,
    request_hash    bytea,
    UNIQUE (ledger_id, idempotency)
);
CREATE INDEX api_key_hashes_of_key ON api_key_hashes (ledger_id, key_id);

-- Unforced for as long as it takes: the owner, whom no policy names, would see no row to copy.
ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY;
INSERT INTO api_key_hashes (hash, ledger_id, key_id, created_at, idempotency, request_hash)
    SELECT hash, ledger_id, key_id, created_at, idempotency, request_hash FROM api_keys;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;
ALTER TABLE api_keys DROP COLUMN hash, DROP COLUMN idempotency, DROP COLUMN request_hash;

-- Apart from api_keys, which every append looks into: a row that is written again and again would slow it down.
CREATE TABLE api_key_uses (
    ledger_id       int NOT NULL,
    key_id          uuid NOT NULL,
    first_used_at   timestamptz NOT NULL,
    last_used_at    timestamptz NOT NULL,
    PRIMARY KEY (ledger_id, key_id)
) WITH (fillfactor = 50);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['api_key_hashes', 'api_key_uses'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$CREATE POLICY one_ledger ON %I TO sparkledger_api
            USING (ledger_id = nullif(current_setting('sparkledger.ledger', true), '')::int)$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;

GRANT SELECT ON api_key_hashes, api_key_uses TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE (ends_at) ON api_key_hashes TO sparkledger_api, sparkledger_worker;
GRANT INSERT, UPDATE (last_used_at) ON api_key_uses TO sparkledger_api;
-- Changes of keys are recorded as accesses are, also those that are made at the command line.
GRANT INSERT, UPDATE (reads, row_count, complete, ended_at) ON accesses TO sparkledger_worker;

-- Every API process hears of it and forgets what it remembers of keys, whoever made the change.
CREATE FUNCTION tell_of_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY sparkledger_keys;
    RETURN NULL;
END $$;
CREATE TRIGGER keys_changed AFTER UPDATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_keys();
CREATE TRIGGER keys_changed AFTER UPDATE ON api_key_hashes
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_keys();

-- Who presents a key is not known to belong to a ledger yet, so this one look-up goes around row-level security. It
-- answers for several at once, so that a crowd that presents what nobody ever minted takes one session and no more.
DROP FUNCTION authenticate(bytea);
CREATE FUNCTION authenticate(presented bytea[])
RETURNS TABLE (hash bytea, ends_at timestamptz, used boolean, key_id uuid, ledger_id int, ledger_name text, name text,
               role text, creator_ids text[], brand_ids text[], advertiser_ids text[], created_at timestamptz,
               expires_at timestamptz, revoked_at timestamptz, kind text, may_reveal boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT h.hash, h.ends_at, u.key_id IS NOT NULL, k.key_id, k.ledger_id, l.name, k.name, k.role, k.creator_ids,
           k.brand_ids, k.advertiser_ids, k.created_at, k.expires_at, k.revoked_at, k.kind, k.may_reveal
    FROM api_key_hashes h
    JOIN api_keys k ON k.key_id = h.key_id
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    LEFT JOIN api_key_uses u ON u.ledger_id = k.ledger_id AND u.key_id = k.key_id
    WHERE h.hash = ANY (presented)
$$;

-- A token names its ledger, whose id its bearer's session is yet to be bound to.
CREATE FUNCTION ledger_named(wanted text) RETURNS int
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT ledger_id FROM ledgers WHERE name = wanted
$$;

-- A bearer's role and subjects are those of their tokens, and what is written down of them follows. Those of a key that
-- is presented itself never change: no role of the program may write these columns but through here.
CREATE FUNCTION bearer_acts_as(
    of_ledger int, of_key uuid, now_role text, now_creators text[], now_brands text[], now_advertisers text[])
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE api_keys
    SET role = now_role, creator_ids = now_creators, brand_ids = now_brands, advertiser_ids = now_advertisers
    WHERE key_id = of_key AND kind = 'token' AND revoked_at IS NULL
    AND ledger_id = of_ledger
    AND ledger_id = nullif(current_setting('sparkledger.ledger', true), '')::int
$$;
GRANT UPDATE (role, creator_ids, brand_ids, advertiser_ids) ON api_keys TO sparkledger_log;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION authenticate OWNER TO sparkledger_log;
ALTER FUNCTION ledger_named OWNER TO sparkledger_log;
ALTER FUNCTION bearer_acts_as OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION authenticate, ledger_named, bearer_acts_as FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate, ledger_named, bearer_acts_as TO sparkledger_api, sparkledger_worker;
