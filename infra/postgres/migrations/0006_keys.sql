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
            USING (ledger_id = (SELECT bound_ledger()))$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;

GRANT SELECT ON api_key_hashes, api_key_uses TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE (ends_at) ON api_key_hashes TO sparkledger_log;
GRANT INSERT, UPDATE (last_used_at) ON api_key_uses TO sparkledger_api;
-- Changes of keys are recorded as accesses are, also those that are made at the command line.
GRANT INSERT, UPDATE (reads, row_count, complete, ended_at) ON accesses TO sparkledger_worker;

-- Every API process hears of it and forgets what it remembers of keys, from whichever process the change comes.
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
-- With the key come the tokens that bind a session to its ledger, and a caller of `append` to itself.
DROP FUNCTION authenticate(bytea);
CREATE FUNCTION authenticate(presented bytea[])
RETURNS TABLE (hash bytea, ends_at timestamptz, used boolean, ledger_token bytea, key_token bytea, key_id uuid,
               ledger_id int, ledger_name text, name text, role text, creator_ids text[], brand_ids text[],
               advertiser_ids text[], created_at timestamptz, expires_at timestamptz, revoked_at timestamptz,
               kind text, may_reveal boolean, served_by text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT h.hash, h.ends_at, u.key_id IS NOT NULL, ledger_token(k.ledger_id), key_token(k.ledger_id, k.key_id),
           k.key_id, k.ledger_id, l.name, k.name, k.role, k.creator_ids, k.brand_ids, k.advertiser_ids, k.created_at,
           k.expires_at, k.revoked_at, k.kind, k.may_reveal, l.served_by
    FROM api_key_hashes h
    JOIN api_keys k ON k.key_id = h.key_id
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    LEFT JOIN api_key_uses u ON u.ledger_id = k.ledger_id AND u.key_id = k.key_id
    WHERE h.hash = ANY (presented)
$$;

-- The issuers whose bearer tokens are accepted, each with the ledgers that its tokens open and the roles that they give;
-- `sparkledger migrate` writes them. The database cannot verify a token, so it believes the API that a bearer came: of
-- these ledgers, in these roles, and of no other.
CREATE TABLE trusted_issuers (
    issuer          text NOT NULL,
    ledger          text NOT NULL,
    roles           text[] NOT NULL,
    PRIMARY KEY (issuer, ledger)
);
GRANT SELECT ON trusted_issuers TO sparkledger_log;

-- Whether an issuer's tokens may act in a ledger, in a role or in any.
CREATE FUNCTION is_trusted_role(of_ledger int, wanted text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM trusted_issuers t
        JOIN ledgers l ON l.name = t.ledger
        WHERE l.ledger_id = of_ledger AND (wanted IS NULL OR wanted = ANY (t.roles))
    )
$$;

-- A token names its ledger, whose id its bearer's session is yet to be bound to.
CREATE FUNCTION ledger_named(wanted text, OUT ledger_id int, OUT ledger_token bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT l.ledger_id,
           CASE WHEN is_trusted_role(l.ledger_id, NULL) OR is_worker() THEN ledger_token(l.ledger_id) END
    FROM ledgers l
    WHERE l.name = wanted AND l.served_by IS NULL
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
    AND ledger_id = of_ledger AND ledger_id = (SELECT bound_ledger())
    AND is_trusted_role(of_ledger, now_role)
$$;
GRANT UPDATE (role, creator_ids, brand_ids, advertiser_ids) ON api_keys TO sparkledger_log;

-- Keys are made, given another text and revoked by functions alone: a login that could write the columns itself could
-- bring back what was revoked. Revocation and the end of a text only go forward.

-- Hold the key that asks as it is until the transaction ends, so that one that was revoked does not outlive itself.
-- Answers whether it may show secrets; null where it is not valid any more.
CREATE FUNCTION hold_key(of_ledger int, of_key uuid) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT may_reveal
    FROM api_keys
    WHERE ledger_id = of_ledger AND ledger_id = (SELECT bound_ledger()) AND key_id = of_key
    AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
    FOR NO KEY UPDATE
$$;

-- Whether this login may change the keys of a ledger: the owner's, or one that presents an administrator's key.
CREATE FUNCTION administers(of_ledger int, by_key uuid, by_token bytea) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT coalesce(of_ledger = (SELECT bound_ledger()), false) AND (is_owner() OR (
        coalesce(by_token = key_token(of_ledger, by_key), false)
        AND EXISTS (
            SELECT FROM api_keys k
            WHERE k.ledger_id = of_ledger AND k.key_id = by_key AND (k.role = 'admin' OR k.kind = 'token')
            AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
        )
    ))
$$;

-- Make a key; false where its text, or the request with this Idempotency-Key, is known already. The row of a token's
-- bearer is made by the API itself, where an issuer is trusted.
CREATE FUNCTION mint_key(
    by_key uuid, by_token bytea, of_ledger int, new_key uuid, new_hash bytea, new_kind text, new_name text,
    new_role text, creators text[], brands text[], advertisers text[], expires timestamptz, subject bytea,
    reveals boolean, request_key bytea, hash_of_request bytea)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF of_ledger IS DISTINCT FROM bound_ledger() OR NOT (
        administers(of_ledger, by_key, by_token) OR (new_kind = 'token' AND is_trusted_role(of_ledger, new_role))
    ) THEN
        RAISE insufficient_privilege USING MESSAGE = 'only a key that administers the ledger makes keys';
    END IF;
    WITH fresh AS (
        INSERT INTO api_key_hashes (hash, ledger_id, key_id, idempotency, request_hash)
        VALUES (new_hash, of_ledger, new_key, request_key, hash_of_request)
        ON CONFLICT DO NOTHING
        RETURNING key_id
    )
    INSERT INTO api_keys (key_id, ledger_id, kind, name, role, creator_ids, brand_ids, advertiser_ids, expires_at,
                          created_by, sealed_subject, may_reveal)
    SELECT f.key_id, of_ledger, new_kind, new_name, new_role, creators, brands, advertisers, expires, by_key, subject,
           reveals
    FROM fresh f;
    RETURN FOUND;
END $$;

-- Give a key another text. The one before it works on for a while; one from before that has had its time. False where
-- the text, or the request with this Idempotency-Key, is known already.
CREATE FUNCTION rotate_key(
    by_key uuid, by_token bytea, of_ledger int, of_key uuid, new_hash bytea, overlap_seconds int, request_key bytea,
    hash_of_request bytea)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT administers(of_ledger, by_key, by_token) THEN
        RAISE insufficient_privilege USING MESSAGE = 'only a key that administers the ledger rotates keys';
    END IF;
    INSERT INTO api_key_hashes (hash, ledger_id, key_id, idempotency, request_hash)
    SELECT new_hash, of_ledger, k.key_id, request_key, hash_of_request
    FROM api_keys k
    WHERE k.ledger_id = of_ledger AND k.key_id = of_key AND k.kind = 'key'
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE api_key_hashes
    SET ends_at = CASE WHEN ends_at IS NULL THEN now() + make_interval(secs => overlap_seconds) ELSE now() END
    WHERE ledger_id = of_ledger AND key_id = of_key AND hash <> new_hash AND (ends_at IS NULL OR ends_at > now());
    RETURN true;
END $$;

-- Revoke a key for good; false where there is none, or it was. Appends under way are waited for, and others wait for
-- this: no event by the key is recorded later than its revocation.
CREATE FUNCTION revoke_key(by_key uuid, by_token bytea, of_ledger int, of_key uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT (administers(of_ledger, by_key, by_token) OR is_worker()) THEN -- a worker revokes those of erased creators
        RAISE insufficient_privilege USING MESSAGE = 'only a key that administers the ledger revokes keys';
    END IF;
    PERFORM FROM ledgers WHERE ledger_id = of_ledger FOR SHARE;
    UPDATE api_keys SET revoked_at = clock_timestamp()
    WHERE ledger_id = of_ledger AND key_id = of_key AND revoked_at IS NULL;
    RETURN FOUND;
END $$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['is_trusted_role', 'authenticate', 'ledger_named', 'bearer_acts_as', 'hold_key', 'administers',
                                'mint_key', 'rotate_key', 'revoke_key'] LOOP
        EXECUTE format('ALTER FUNCTION %I OWNER TO sparkledger_log', name);
        EXECUTE format('REVOKE ALL ON FUNCTION %I FROM PUBLIC', name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %I TO sparkledger_api, sparkledger_worker', name);
    END LOOP;
END $$;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE EXECUTE ON FUNCTION administers, is_trusted_role FROM sparkledger_api, sparkledger_worker;
