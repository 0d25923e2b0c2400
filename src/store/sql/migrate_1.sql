-- Schema version 1. `pgcache.` and `/*schema*/` stand for the configured schema, `/*persistence*/` for UNLOGGED (the
-- default) or nothing (`durable(true)`). Runs inside the transaction that also records the version.

-- What a fill or a memory tier may hold is bound to this row: a random id, bound to the cluster, the
-- database and the very table that it stands in, so that a dump restored elsewhere (or here) and a
-- database made from a template do not recognise it. It is as persistent as the entries: what empties
-- them empties it.
CREATE /*persistence*/ TABLE pgcache.epoch (
    singleton         boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    id                uuid        NOT NULL DEFAULT gen_random_uuid(),
    system_identifier bigint      NOT NULL,
    database          oid         NOT NULL,
    relation          oid         NOT NULL,
    -- Everything that this snapshot sees may have been forgotten: no older snapshot is usable.
    horizon           pg_snapshot NOT NULL,
    -- Everything that this snapshot sees stands in `changed`; the rest stands in `invalidation`.
    folded            pg_snapshot NOT NULL,
    -- The largest transaction in `changed`, or that was.
    last_folded       xid8        NOT NULL DEFAULT '0',
    folded_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Everything that `log_floor` sees was deleted from `invalidation`; what `log_floor_next` sees is next.
    log_floor         pg_snapshot NOT NULL,
    log_floor_next    pg_snapshot NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0);

-- Always UNLOGGED: a crash hands out transaction ids again that were never flushed, so whatever is held
-- outside the database must not survive one, even where the tables do.
CREATE UNLOGGED TABLE pgcache.incarnation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid    NOT NULL DEFAULT gen_random_uuid()
);

-- The log. One row per scope and transaction; nobody but the transaction itself can have its xid, so no
-- two transactions ever meet in this index. (Of all keys: two scopes with one hash have other summaries.)
CREATE /*persistence*/ TABLE pgcache.invalidation (
    xid    xid8        NOT NULL,
    keys   bigint[]    NOT NULL,             -- pgcache.invalidation_keys(kind, name, tenant, entity)
    kind   "char"      NOT NULL,             -- d domain, u uri, t tenant, g group
    name   text        NOT NULL,
    tenant text,                             -- null: every tenant
    entity text,                             -- null: every entity
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX invalidation_xid ON pgcache.invalidation (xid, keys);

-- The folded log: for every key the transactions that changed it last (see pgcache.fold).
CREATE /*persistence*/ TABLE pgcache.changed (
    key   bigint PRIMARY KEY,
    xids  xid8[] NOT NULL,                   -- descending, at most 64
    since xid8,                              -- not null: others between this one and the last of `xids`
    -- The key that stands for this one and its like when there are too many; null: nothing does (see coarsen).
    coarse bigint,
    -- Not null: this row also stands for changes that were forgotten, all of which this snapshot sees.
    seen   pg_snapshot
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- How often a domain was changed since the epoch; for people. Kept up by fold().
CREATE /*persistence*/ TABLE pgcache.change_count (
    key           bigint      PRIMARY KEY,   -- of (name, tenant): a tenant may be longer than an index can hold
    tenant        text,
    name          text        NOT NULL,
    version       bigint      NOT NULL,
    last_modified timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

CREATE /*persistence*/ TABLE pgcache.entry (
    key        bytea       PRIMARY KEY,
    epoch      uuid        NOT NULL,
    snapshot   pg_snapshot NOT NULL,         -- taken before the handler ran
    probes     bigint[]    NOT NULL,         -- keys that an invalidation of this entry would carry
    born_at    timestamptz NOT NULL,         -- now minus this is its Age (RFC 9111 §4.2.3)
    expires_at timestamptz NOT NULL,         -- fresh until then
    keep_until timestamptz NOT NULL,         -- of some use until then, though stale
    revalidatable boolean  NOT NULL,         -- has a validator that its handler knows
    -- Not null: this is no answer, but says which request fields the answers for this URI vary with; each is
    -- stored under a key of its own, of which the latest stand in `variants`.
    vary       text[],
    variants   bytea[],
    -- for people
    authority  text        NOT NULL,
    path       text        NOT NULL,
    route      text,                         -- the pattern that matched, or the layer's place
    tenant     text,
    scopes     text[]      NOT NULL,
    checksum   bytea       NOT NULL,         -- of key, head and body
    head       bytea       NOT NULL,
    body       bytea       NOT NULL,
    cost       float8      NOT NULL DEFAULT 0 -- seconds that its handler took
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05);
-- Bodies are sent as they are and often compressed already; pglz costs more than it saves (1.2 ms for 64 KB).
ALTER TABLE pgcache.entry ALTER body SET STORAGE EXTERNAL;

-- Who is filling a key. A released lease stays for a while: `released` is the transaction that stored the answer.
CREATE UNLOGGED TABLE pgcache.lease (
    key        bytea       PRIMARY KEY,
    holder     bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    released   xid8
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- Which instance does the housekeeping next: a lease on the database's clock, without session state.
CREATE UNLOGGED TABLE pgcache.housekeeping (
    task text        PRIMARY KEY,
    due  timestamptz NOT NULL
);

-- One row where the epoch is this database's own and this server is a primary; else none.
-- pg_control_system() costs 5 µs, and every role may call it.
CREATE VIEW pgcache.current AS
    SELECT e.id AS epoch,
           n.id::text || '/' || extract(epoch FROM pg_postmaster_start_time())::text AS incarnation,
           e.horizon, e.folded, e.log_floor
      FROM pgcache.epoch e CROSS JOIN pgcache.incarnation n
     WHERE e.singleton AND n.singleton
       AND e.relation = e.tableoid
       AND e.system_identifier = (SELECT system_identifier FROM pg_control_system())
       AND e.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND NOT pg_is_in_recovery();

-- What makes a stored entry valid, in one place. An entry is valid iff its snapshot S is usable (not older
-- than the horizon H) and no committed change of its scopes is unseen by S. Unseen are, by the definition
-- of a snapshot, xid >= xmax(S) and xip(S). Changes are in `changed` (found by primary key, one probe for
-- each key of the entry) or in the part of the log that is not folded yet: of S and F, the later one says
-- which rows of the log are unseen by both (two index conditions on invalidation_xid).
CREATE VIEW pgcache.entry_state AS
    SELECT e.*,
           pg_snapshot_xmax(e.snapshot) >= pg_snapshot_xmax(p.horizon)
           AND NOT EXISTS (SELECT FROM pg_snapshot_xip(e.snapshot) AS x (xid)
                            WHERE pg_visible_in_snapshot(x.xid, p.horizon)) AS usable,
           -- Whoever sees all up to the last change of anything needs no search.
           pg_snapshot_xmin(e.snapshot) > greatest(p.last_folded, newest.xid)
           OR
           NOT EXISTS (SELECT FROM pgcache.changed c
                        WHERE c.key = ANY (e.probes)
                          AND (EXISTS (SELECT FROM unnest(c.xids) AS x (xid)
                                        WHERE NOT pg_visible_in_snapshot(x.xid, e.snapshot))
                               OR c.since IS NOT NULL
                                  AND EXISTS (SELECT FROM pg_snapshot_xip(e.snapshot) AS x (xid)
                                               WHERE x.xid >= c.since AND x.xid < c.xids[1])
                               -- as with the horizon
                               OR pg_snapshot_xmax(e.snapshot) < pg_snapshot_xmax(c.seen)
                               OR c.seen IS NOT NULL
                                  AND EXISTS (SELECT FROM pg_snapshot_xip(e.snapshot) AS x (xid)
                                               WHERE pg_visible_in_snapshot(x.xid, c.seen))))
           AND NOT (newest.xid >= pg_snapshot_xmax(later.snapshot)
                    AND EXISTS (SELECT FROM pgcache.invalidation i
                                 WHERE i.xid >= pg_snapshot_xmax(later.snapshot)
                                   AND i.keys && e.probes))
           AND NOT EXISTS (SELECT FROM pgcache.invalidation i
                            WHERE i.xid = ANY (ARRAY(SELECT pg_snapshot_xip(later.snapshot)))
                              AND i.keys && e.probes
                              AND NOT pg_visible_in_snapshot(i.xid, e.snapshot)) AS unchanged
      FROM pgcache.epoch p
      JOIN pgcache.entry e ON p.singleton AND e.epoch = p.id
     CROSS JOIN LATERAL (SELECT CASE WHEN pg_snapshot_xmax(e.snapshot) >= pg_snapshot_xmax(p.folded)
                                     THEN e.snapshot ELSE p.folded END AS snapshot) later
     CROSS JOIN (SELECT coalesce((SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1), '0') AS xid
                 OFFSET 0) newest;

-- Asks for entries. One row per stored entry that is of any use: valid, or revalidatable, or any with
-- `invalid_too`. One row with a null key if there is none; no row if the cache must not be used (no good epoch,
-- or not a primary). `ttl` is negative for a stale entry. Indexes: entry_pkey, changed_pkey,
-- invalidation_xid, whatever the statistics say: the settings see to that, and the plan is made once per
-- session (making it takes three times as long as running it). The function is STABLE: everything in it sees
-- the snapshot of the statement that calls it, and that is the one it returns.
CREATE FUNCTION pgcache.lookup(keys bytea[], invalid_too boolean)
RETURNS TABLE (epoch text, incarnation text, snapshot text, at float8, read_committed boolean, key bytea,
               valid boolean, revalidatable boolean, vary text[], checksum bytea, head bytea, body bytea,
               probes bigint[], filled_at text, age float8, ttl float8, cost float8)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.epoch::text, c.incarnation, pg_current_snapshot()::text,
           date_part('epoch', clock_timestamp()),
           current_setting('default_transaction_isolation') = 'read committed',
           e.key, e.valid, e.revalidatable, e.vary, e.checksum, e.head, e.body, e.probes, e.snapshot::text,
           date_part('epoch', clock_timestamp() - e.born_at),
           date_part('epoch', e.expires_at - clock_timestamp()), e.cost
      FROM pgcache.current c
      LEFT JOIN LATERAL (
            -- OFFSET 0: or `valid` would be computed wherever it is mentioned
            SELECT s.*, s.usable AND s.unchanged AS valid
              FROM pgcache.entry_state s
             WHERE s.key = ANY (keys) AND s.keep_until > clock_timestamp()
            OFFSET 0) e
        ON e.valid OR e.revalidatable OR invalid_too;
END
$$;

-- Claims the lease of a key for `life` seconds: 'granted'; 'held', by somebody else; or 'look again': an answer was
-- stored by a transaction that `seen`, the snapshot of the claimant's lookup, does not see. Waits for nobody but
-- another claim of this key. Index: lease_pkey.
CREATE FUNCTION pgcache.claim(key bytea, holder bigint, life float8, seen text) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    known pgcache.lease;
BEGIN
    SELECT l.* INTO known FROM pgcache.lease l WHERE l.key = key;
    IF known.released IS NOT NULL AND NOT pg_visible_in_snapshot(known.released, seen::pg_snapshot) THEN
        RETURN 'look again';
    END IF;
    IF known.released IS NULL AND known.expires_at > clock_timestamp() THEN
        RETURN 'held';
    END IF;
    INSERT INTO pgcache.lease AS l (key, holder, expires_at)
    VALUES (key, holder, clock_timestamp() + make_interval(secs => life))
        ON CONFLICT ON CONSTRAINT lease_pkey DO UPDATE
       SET holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at, released = NULL
     -- as it was when it was looked at
     WHERE l.holder = known.holder AND l.expires_at = known.expires_at AND l.released IS NOT DISTINCT FROM known.released;
    RETURN CASE WHEN FOUND THEN 'granted' ELSE 'held' END;
END
$$;

-- Whether no change with one of the keys was committed after `since` and up to `until`; false also where the log does
-- not reach back that far. An answer with the snapshot `since` is good for whoever arrived at `until`: to ask
-- whether it is good now would let those who wait starve while others write. Index: invalidation_xid.
CREATE FUNCTION pgcache.unchanged_between(keys bigint[], since text, until text) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    s pg_snapshot := since::pg_snapshot;
    u pg_snapshot := until::pg_snapshot;
BEGIN
    RETURN EXISTS (SELECT FROM pgcache.current c
                    WHERE pg_snapshot_xmax(s) >= pg_snapshot_xmax(c.horizon)
                      AND pg_snapshot_xmax(s) >= pg_snapshot_xmax(c.log_floor)
                      AND NOT EXISTS (SELECT FROM pg_snapshot_xip(s) AS x (xid)
                                       WHERE pg_visible_in_snapshot(x.xid, c.horizon)
                                          OR pg_visible_in_snapshot(x.xid, c.log_floor)))
       AND NOT EXISTS (SELECT FROM pgcache.invalidation i
                        WHERE i.xid >= pg_snapshot_xmax(s) AND i.xid < pg_snapshot_xmax(u)
                          AND i.keys && unchanged_between.keys AND pg_visible_in_snapshot(i.xid, u))
       AND NOT EXISTS (SELECT FROM pgcache.invalidation i
                        WHERE i.xid = ANY (ARRAY(SELECT pg_snapshot_xip(s)))
                          AND i.keys && unchanged_between.keys AND pg_visible_in_snapshot(i.xid, u));
END
$$;

-- The change feed: the keys of what was committed since `past`, the snapshot of an earlier read. Since two snapshots
-- tell exactly what was committed between them, nobody has to remember more than one. `changes` is null where that
-- cannot be said: without a past, if rows of the log that it does not see may be gone, if a clear() came between, or if
-- there are more than `max_keys`. Null without a good epoch. Index: invalidation_xid.
-- Returns {epoch, incarnation, snapshot, whether READ COMMITTED is the default, changes}: one value, since to plan a
-- function in FROM costs as much as all the rest.
CREATE FUNCTION pgcache.feed(past pg_snapshot, max_keys integer) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    here    record;
    changes bigint[];
BEGIN
    SELECT c.* INTO here FROM pgcache.current c;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF pg_snapshot_xmax(past) >= pg_snapshot_xmax(here.horizon) AND pg_snapshot_xmax(past) >= pg_snapshot_xmax(here.log_floor)
       AND (pg_snapshot_xmin(past) = pg_snapshot_xmax(past)
            OR NOT EXISTS (SELECT FROM pg_snapshot_xip(past) AS x (xid)
                            WHERE pg_visible_in_snapshot(x.xid, here.horizon)
                               OR pg_visible_in_snapshot(x.xid, here.log_floor)))
    THEN
        changes := ARRAY(SELECT unnest(i.keys) FROM pgcache.invalidation i WHERE i.xid >= pg_snapshot_xmax(past)
                         LIMIT max_keys + 1);
        IF pg_snapshot_xmin(past) < pg_snapshot_xmax(past) THEN
            changes := changes || ARRAY(SELECT unnest(i.keys) FROM pgcache.invalidation i
                                         WHERE i.xid = ANY (ARRAY(SELECT pg_snapshot_xip(past)))
                                         LIMIT max_keys + 1);
        END IF;
        IF cardinality(changes) > max_keys THEN
            changes := NULL;
        END IF;
    END IF;
    RETURN ARRAY[here.epoch::text, here.incarnation, pg_current_snapshot()::text,
                 (current_setting('default_transaction_isolation') = 'read committed')::text,
                 array_to_string(changes, ',')];
END
$$;

-- 64 bits of a hash of a text. sha256, because md5() raises an error on servers in FIPS mode.
-- (Standard SQL bodies: names are resolved now, under the fixed search_path that migrations run with.)
CREATE FUNCTION pgcache.hash64(value text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ('x' || encode(substr(sha256(convert_to(value, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint;

-- A tenant or entity as scopes compare it: in small letters, without white space, signs, leading zeros, and what
-- the spellings of a UUID differ in. A handler that parses its path takes `7`, `007` and `+7` for one
-- row, and a UUID in any spelling; a change of that row has to meet them all. (Two values with one normal
-- form are invalidated together, which costs a hit.) As `normal_form` in domain.rs.
CREATE FUNCTION pgcache.normal_form(value text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ltrim(replace(translate(lower(value COLLATE "C"), E'-+{}: \t\r\n', ''), 'urnuuid', ''), '0');

-- The part that a tenant (kind t) or an entity (kind e) has in a scope's key; null: any.
CREATE FUNCTION pgcache.tenant_hash(tenant text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(CASE WHEN tenant IS NULL THEN 't*' ELSE 't=' || pgcache.normal_form(tenant) END);

CREATE FUNCTION pgcache.entity_hash(kind "char", entity text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(CASE WHEN entity IS NULL THEN 'e*'
                           WHEN kind = 'd' THEN 'e=' || pgcache.normal_form(entity)
                           ELSE 'e=' || entity END);

-- A scope's key is the exclusive or of the hashes of its parts: each is hashed once, though they meet in
-- several keys. Two scopes with one key are invalidated together, which costs a hit and no correctness; so
-- 64 bits are plenty.
--
-- The keys that an invalidation carries: its own first, and those of the summaries (`+`: anything below) that
-- a dependency on any tenant or any entity looks at. As `Scope::invalidation_keys`.
CREATE FUNCTION pgcache.invalidation_keys(name bigint, tenant bigint, entity bigint) RETURNS bigint[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ARRAY[name # tenant # entity,
             name # tenant # (-252543570537051072),                  -- hash64('e+')
             name # 6058401063807974705 # entity,                  -- hash64('t+')
             name # 6058401063807974705 # (-252543570537051072)];

CREATE FUNCTION pgcache.name_hash(kind "char", name text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(kind::text || '=' || name);

CREATE FUNCTION pgcache.invalidation_keys(kind "char", name text, tenant text, entity text) RETURNS bigint[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.invalidation_keys(pgcache.name_hash(kind, name), pgcache.tenant_hash(tenant),
                                 pgcache.entity_hash(kind, entity));

-- The key that stands for every scope of one domain, or of one other kind, when prune() had no room for them
-- one by one. As `Scope::coarse_key`.
CREATE FUNCTION pgcache.coarse_key(kind "char", name text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(kind::text || '~' || CASE WHEN kind = 'd' THEN name ELSE '' END);

-- Which domains a change of a domain changes too, and theirs, and so on (see pgcache.cascade).
CREATE TABLE pgcache.cascade_closure (
    source text NOT NULL,
    target text NOT NULL,
    PRIMARY KEY (source, target)
);

-- Writes scopes of every kind to the log, in the caller's transaction: kinds[i], names[i], tenants[i],
-- entities[i] are one; a null tenant or entity means every one. A domain's cascades follow, for the same
-- tenant. Takes no lock that another transaction could wait for.
-- (PL/pgSQL, which keeps its plans.)
CREATE FUNCTION pgcache.invalidate_scopes(kinds text[], names text[], tenants text[], entities text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO pgcache.invalidation (xid, keys, kind, name, tenant, entity)
    SELECT pg_current_xact_id(), pgcache.invalidation_keys(s.kind::"char", s.name, s.tenant, s.entity),
           s.kind::"char", s.name, s.tenant, s.entity
      FROM unnest(kinds, names, tenants, entities) AS s (kind, name, tenant, entity)
        ON CONFLICT DO NOTHING;
    INSERT INTO pgcache.invalidation (xid, keys, kind, name, tenant)
    SELECT DISTINCT pg_current_xact_id(), pgcache.invalidation_keys('d', c.target, s.tenant, NULL), 'd'::"char",
           c.target, s.tenant
      FROM unnest(kinds, names, tenants) AS s (kind, name, tenant)
      JOIN pgcache.cascade_closure c ON c.source = s.name
     WHERE s.kind = 'd'
        ON CONFLICT DO NOTHING;
END
$$;

CREATE FUNCTION pgcache.is_domain_name(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN name COLLATE "C" ~ '^[a-z0-9_.-]{1,63}$';

CREATE FUNCTION pgcache.require_domain_name(caller text, name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgcache.is_domain_name(name) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgcache.%: % is not a domain name', caller, coalesce(quote_literal(name), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A domain name has 1 to 63 characters out of a-z, 0-9, "_", "." and "-".';
    END IF;
END
$$;

-- For people and programs of any role that may use the schema: invalidates, in the caller's transaction,
-- what depends on `domain`, of `tenant` (null: every tenant), for `entity` (null: every entity).
CREATE FUNCTION pgcache.invalidate(domain text, tenant text DEFAULT NULL, entity text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgcache.require_domain_name('invalidate', domain);
    PERFORM pgcache.invalidate_scopes(ARRAY['d'], ARRAY[domain], ARRAY[tenant], ARRAY[entity]);
END
$$;

-- Every answer depends on its own resource, and so on the coarse key of all resources.
CREATE FUNCTION pgcache.invalidate_everything() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO pgcache.invalidation (xid, keys, kind, name)
    VALUES (pg_current_xact_id(), ARRAY[pgcache.coarse_key('u', '')], 'u', '*')
        ON CONFLICT DO NOTHING;
END
$$;

-- Gives the database a new epoch, if it has none or another database's, and empties what belonged to the
-- old one. One of any number of callers does it; the others wait for it. Not while a transaction is
-- prepared: its change survived the crash, its (unlogged) row in the log did not.
-- Returns whether the epoch is good now.
CREATE FUNCTION pgcache.renew_epoch() RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    here record;
BEGIN
    IF pg_is_in_recovery() THEN
        RETURN false;
    END IF;
    INSERT INTO pgcache.incarnation DEFAULT VALUES ON CONFLICT DO NOTHING;
    SELECT c.system_identifier, d.oid AS database, 'pgcache.epoch'::regclass::oid AS relation INTO here
      FROM pg_control_system() c, pg_database d WHERE d.datname = current_database();
    PERFORM FROM pgcache.epoch e
      WHERE (e.system_identifier, e.database, e.relation) = (here.system_identifier, here.database, here.relation);
    IF FOUND THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database()) THEN
        RETURN false;
    END IF;
    UPDATE pgcache.epoch e
       SET id = gen_random_uuid(), system_identifier = here.system_identifier, database = here.database,
           relation = here.relation, last_folded = '0', horizon = pg_current_snapshot(), folded = pg_current_snapshot(),
           log_floor = pg_current_snapshot(), log_floor_next = pg_current_snapshot()
     WHERE (e.system_identifier, e.database, e.relation) <> (here.system_identifier, here.database, here.relation);
    IF NOT FOUND THEN
        INSERT INTO pgcache.epoch (system_identifier, database, relation, horizon, folded, log_floor, log_floor_next)
        SELECT here.system_identifier, here.database, here.relation, s, s, s, s FROM pg_current_snapshot() s
            ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN true;
        END IF;
    END IF;
    DELETE FROM pgcache.entry;
    DELETE FROM pgcache.changed;
    DELETE FROM pgcache.change_count;
    DELETE FROM pgcache.invalidation;
    RETURN true;
END
$$;

-- The snapshot that sees what is below `xmax` and not `running`.
CREATE FUNCTION pgcache.make_snapshot(xmax xid8, running xid8[]) RETURNS pg_snapshot
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT format('%s:%s:%s', coalesce((array_agg(x.xid ORDER BY x.xid))[1], xmax), xmax,
                      string_agg(x.xid::text, ',' ORDER BY x.xid))::pg_snapshot
          FROM unnest(running) AS x (xid) WHERE x.xid < xmax);

-- Housekeeping statements each need a snapshot of their own.
CREATE FUNCTION pgcache.require_read_committed() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'pgcache housekeeping must run in a READ COMMITTED transaction, not in %',
                        upper(current_setting('transaction_isolation'))
            USING HINT = 'Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
END
$$;

-- Moves what was committed since the last fold from the tail of the log, which every lookup reads, into
-- `changed`, where a lookup probes. Returns the number of rows.
--
-- `changed` keeps, for a key, only transactions that no other dominates: x dominates y if every snapshot
-- that sees x sees y. What this fold finds was not visible in the previous fold's snapshot F; what stands
-- in `changed` was. So whoever sees one of the new ones is later than F and sees all of the old ones, and
-- these may go. (An old one with a larger xid than a new one stays: a snapshot of a replica, taken as
-- `xmin:xmin:`, may see the new one and not the old one.)
-- The caller's own changes are left for the next fold: others may follow in its transaction, which its own
-- snapshot would count as seen, hence as folded.
-- Of more than 64 new ones the largest 64 are kept, and `since` says that there are others between: a
-- snapshot with a transaction in progress in that range counts as if it did not see them.
CREATE FUNCTION pgcache.fold() RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    previous pg_snapshot;
    own      xid8;
    rows     bigint;
BEGIN
    PERFORM pgcache.require_read_committed();
    SELECT p.folded INTO previous FROM pgcache.epoch p FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;                            -- no epoch, or somebody else is at it
    END IF;
    own := pg_current_xact_id();
    -- One statement, hence one snapshot: what it sees of the log is what it records as folded.
    WITH tail AS MATERIALIZED (
        SELECT i.* FROM pgcache.invalidation i
         WHERE i.xid >= pg_snapshot_xmax(previous) AND i.xid <> own
        UNION ALL
        SELECT i.* FROM pgcache.invalidation i
         WHERE i.xid = ANY (ARRAY(SELECT pg_snapshot_xip(previous))) AND i.xid <> own
    ), counted AS (
        INSERT INTO pgcache.change_count AS c (key, tenant, name, version, last_modified)
        SELECT (pgcache.invalidation_keys('d', t.name, t.tenant, NULL))[1], min(t.tenant), t.name,
               count(DISTINCT t.xid), max(t.at)
          FROM tail t WHERE t.kind = 'd' GROUP BY 1, t.name ORDER BY 1
            ON CONFLICT (key) DO UPDATE SET version = c.version + EXCLUDED.version,
                                            last_modified = greatest(c.last_modified, EXCLUDED.last_modified)
    ), fresh AS (
        -- of the four keys, the first names a tenant or an entity if there is one, the second the tenant,
        -- the third the entity; of a kind that is not a domain each names something
        SELECT k.key, array_agg(DISTINCT t.xid ORDER BY t.xid DESC) AS xids,
               max(CASE WHEN t.kind <> 'd' OR k.place IN (1, 2) AND t.tenant IS NOT NULL
                                           OR k.place IN (1, 3) AND t.entity IS NOT NULL
                        THEN nullif(pgcache.coarse_key(t.kind, t.name), k.key) END) AS coarse
          FROM tail t CROSS JOIN unnest(t.keys) WITH ORDINALITY AS k (key, place)
         GROUP BY k.key
    ), kept AS (
        SELECT f.key, f.coarse, f.xids,
               (SELECT array_agg(o.xid) FROM pgcache.changed c CROSS JOIN unnest(c.xids) AS o (xid)
                 WHERE c.key = f.key AND o.xid > f.xids[cardinality(f.xids)]) AS older,
               (SELECT c.since FROM pgcache.changed c
                 WHERE c.key = f.key AND c.xids[1] > f.xids[cardinality(f.xids)]) AS since
          FROM fresh f
    ), merged AS (
        SELECT k.key, k.coarse, k.since,
               ARRAY(SELECT DISTINCT x.xid FROM unnest(k.xids || k.older) AS x (xid) ORDER BY x.xid DESC) AS xids
          FROM kept k
    ), stored AS (
        INSERT INTO pgcache.changed AS c (key, xids, since, coarse)
        SELECT m.key, m.xids[1:64],
               least(m.since, CASE WHEN cardinality(m.xids) > 64 THEN m.xids[cardinality(m.xids)] END), m.coarse
          FROM merged m ORDER BY m.key
            ON CONFLICT (key) DO UPDATE SET xids = EXCLUDED.xids, since = EXCLUDED.since
    ), moved AS (
        UPDATE pgcache.epoch
           SET folded = (SELECT pgcache.make_snapshot(pg_snapshot_xmax(s),
                                                      own || ARRAY(SELECT pg_snapshot_xip(s)))
                           FROM pg_current_snapshot() AS s),
               last_folded = greatest(last_folded, (SELECT t.xid FROM tail t ORDER BY t.xid DESC LIMIT 1)),
               folded_at = clock_timestamp()
    )
    SELECT count(*) INTO rows FROM tail;
    RETURN rows;
END
$$;

-- Makes room in `changed`: of the rows that name a tenant, an entity or a resource, keeps the latest of each
-- domain, as many as leave at most `target` rows in all (the same number for each, so that a busy domain does not
-- cost another one its memory). The others are replaced by the domain's coarse row, which counts for all of
-- its scopes: a horizon of its own. That is a snapshot which sees all that was forgotten, and not what is in progress
-- now: a transaction that stays open must not make every snapshot from its time useless.
CREATE FUNCTION pgcache.coarsen(target bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    running xid8[] := ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot()));
    room    bigint;
    quota   bigint := 0;
    removed bigint;
BEGIN
    SELECT greatest(target - count(*) FILTER (WHERE c.coarse IS NULL) - count(DISTINCT c.coarse), 0) INTO room
      FROM pgcache.changed c;
    -- the largest number for each that fits: what small groups leave over is shared by the others
    SELECT coalesce(max(CASE WHEN g.before + g.size * g.larger <= room THEN g.size
                             ELSE greatest((room - g.before) / g.larger, 0) END), 0) INTO quota
      FROM (SELECT s.size, coalesce(sum(s.size) OVER (ORDER BY s.size, s.coarse ROWS BETWEEN UNBOUNDED PRECEDING
                                                                                AND 1 PRECEDING), 0) AS before,
                   count(*) OVER (ORDER BY s.size, s.coarse ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS larger
              FROM (SELECT c.coarse, count(*) AS size FROM pgcache.changed c
                     WHERE c.coarse IS NOT NULL GROUP BY c.coarse) s) g;
    WITH ranked AS (
        SELECT c.key, row_number() OVER (PARTITION BY c.coarse ORDER BY c.xids[1] DESC, c.key) AS place
          FROM pgcache.changed c WHERE c.coarse IS NOT NULL
    ), gone AS (
        DELETE FROM pgcache.changed c USING ranked r WHERE c.key = r.key AND r.place > quota
        RETURNING c.coarse, c.xids[1] AS latest
    ), summed AS (
        -- no max() for xid8 before PostgreSQL 16
        SELECT g.coarse, (array_agg(g.latest ORDER BY g.latest DESC))[1] AS latest FROM gone g GROUP BY g.coarse
    ), stored AS (
        INSERT INTO pgcache.changed AS c (key, xids, seen)
        SELECT s.coarse, ARRAY[s.latest], pgcache.make_snapshot((s.latest::text::bigint + 1)::text::xid8, running)
          FROM summed s
            ON CONFLICT (key) DO UPDATE
           SET seen = pgcache.make_snapshot(greatest(pg_snapshot_xmax(c.seen), pg_snapshot_xmax(EXCLUDED.seen)), running),
               -- the largest first, for prune(); and what this row says besides
               xids = ARRAY(SELECT DISTINCT x.xid FROM unnest(EXCLUDED.xids || c.xids) AS x (xid)
                             WHERE x.xid IN (c.xids[1], EXCLUDED.xids[1]) OR NOT pg_visible_in_snapshot(x.xid, EXCLUDED.seen)
                             ORDER BY x.xid DESC)
    )
    SELECT count(*) INTO removed FROM gone;
    RETURN removed;
END
$$;

-- Folds, forgets the rows of the log that were folded before the run before this one, and cuts `changed`
-- down to three quarters of `max_rows` when it has more: first by coarsening; then, if domains alone are too
-- many, the oldest go, and the horizon moves, in the same transaction, to a snapshot that sees all of them.
-- Entries from before the horizon count as invalid. Returns the number of rows removed.
CREATE FUNCTION pgcache.prune(max_rows bigint DEFAULT 1000000) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    state   pgcache.epoch;
    target  bigint := max_rows - max_rows / 4;
    cut     xid8;
    removed bigint;
    more    bigint;
BEGIN
    IF max_rows IS NULL OR max_rows < 1 THEN
        RAISE EXCEPTION 'pgcache.prune: max_rows must be at least 1, not %', max_rows
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pgcache.fold();
    SELECT * INTO state FROM pgcache.epoch FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    DELETE FROM pgcache.invalidation i
     WHERE i.xid < pg_snapshot_xmax(state.log_floor_next)
       AND pg_visible_in_snapshot(i.xid, state.log_floor_next);
    GET DIAGNOSTICS removed = ROW_COUNT;
    UPDATE pgcache.epoch SET log_floor = state.log_floor_next, log_floor_next = state.folded;

    PERFORM FROM pgcache.changed OFFSET max_rows LIMIT 1;
    IF FOUND THEN
        removed := removed + pgcache.coarsen(target);
        PERFORM FROM pgcache.changed OFFSET target LIMIT 1;
    END IF;
    IF FOUND THEN
        -- one more than the first that has to go: one transaction may have changed more than there is room for
        SELECT (c.xids[1]::text::bigint + 1)::text::xid8 INTO cut FROM pgcache.changed c
         ORDER BY c.xids[1] DESC OFFSET target LIMIT 1;
        -- Whoever sees everything below the new horizon must see everything below the old one.
        cut := greatest(cut, pg_snapshot_xmax(state.horizon));
        DELETE FROM pgcache.changed c WHERE c.xids[1] < cut;
        GET DIAGNOSTICS more = ROW_COUNT;
        removed := removed + more;
        UPDATE pgcache.epoch
           SET horizon = pgcache.make_snapshot(cut, ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot())));
    END IF;

    -- for people only: the oldest are forgotten
    DELETE FROM pgcache.change_count c
     WHERE c.key IN (SELECT o.key FROM pgcache.change_count o ORDER BY o.last_modified DESC OFFSET max_rows);
    RETURN removed;
END
$$;

-- Makes every entry invalid at the commit of the caller's transaction, by moving the horizon to a snapshot
-- that sees this transaction: no snapshot taken before its commit is usable afterwards.
CREATE FUNCTION pgcache.clear() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own bigint := pg_current_xact_id()::text::bigint;
BEGIN
    PERFORM pgcache.require_read_committed();
    PERFORM FROM pgcache.epoch FOR UPDATE;
    UPDATE pgcache.epoch
       SET horizon = (
            SELECT pgcache.make_snapshot(
                       greatest(pg_snapshot_xmax(s), (own + 1)::text::xid8),
                       ARRAY(SELECT pg_snapshot_xip(s)
                             UNION ALL
                             SELECT g.xid::text::xid8
                               FROM generate_series(pg_snapshot_xmax(s)::text::bigint, own - 1) AS g (xid)))
              FROM pg_current_snapshot() AS s);
END
$$;
