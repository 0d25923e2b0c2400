-- One row where the epoch is this database's own and this server is a primary; else none.
-- pg_control_system() costs 5 µs, and every role may call it.
CREATE VIEW pgcache.current AS
    SELECT e.id AS epoch,
           n.id::text || '/' || extract(epoch FROM pg_postmaster_start_time())::text AS incarnation,
           e.horizon, e.folded, e.log_floor, e.last_folded
      FROM pgcache.epoch e CROSS JOIN pgcache.incarnation n
     WHERE e.singleton AND n.singleton
       AND e.relation = e.tableoid
       AND e.system_identifier = (pg_control_system()).system_identifier -- in FROM it costs twice as much
       AND e.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND NOT pg_is_in_recovery();

-- What makes a stored entry valid, in one place. An entry is valid iff its snapshot S is usable (not older
-- than the horizon H) and no committed change of its scopes is unseen by S.
CREATE VIEW pgcache.entry_state AS
    SELECT e.*,
           /*usable*/ AS usable,
           -- Whoever sees all up to the last change of anything needs no search.
           pg_snapshot_xmin(e.snapshot) > greatest(p.last_folded, p.newest) OR /*unchanged*/ AS unchanged
      FROM (SELECT p.id, p.horizon, p.folded, p.last_folded, newest.xid AS newest
              FROM pgcache.epoch p
             CROSS JOIN (SELECT coalesce((SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1), '0') AS xid) newest
             WHERE p.singleton
            OFFSET 0) p
      JOIN pgcache.entry e ON e.epoch = p.id;

-- Whether the statement that calls this was planned where it was prepared (plan.sql): as a function that is said to be IMMUTABLE,
-- it is called by the planner. So a statement that a session keeps can tell whether its plan is the one that was made for it.
CREATE FUNCTION pgcache.is_planned_well() RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT current_setting('tower.pgcache_plan', true) IS NOT DISTINCT FROM 'made here' $$;

-- Where and when a statement looks: epoch, incarnation, its snapshot, the microseconds since 1970, and whether statements are READ
-- COMMITTED here. One column, because it is sent with every row.
CREATE FUNCTION pgcache.origin(epoch uuid, incarnation text, now timestamptz) RETURNS text
LANGUAGE sql STABLE
AS $$ SELECT pg_catalog.concat_ws(' ', epoch, incarnation, pg_catalog.pg_current_snapshot(),
                                  (pg_catalog.date_part('epoch', now) * 1000000::pg_catalog.float8)::pg_catalog.int8,
                                  pg_catalog.current_setting('default_transaction_isolation') = 'read committed') $$;

-- Asks for entries. One row per stored entry that is of any use: valid, or revalidatable, or any with
-- `invalid_too`. One row with a null key if there is none; no row if the cache must not be used (no good epoch,
-- or not a primary). Indexes: entry_pkey, changed_pkey,
-- invalidation_xid, whatever the statistics say: the settings see to that, and the plans are made once per
-- session (making them takes three times as long as running them). The function is STABLE: everything in it sees
-- the snapshot of the statement that calls it, and that is the one it returns.
-- To begin with entry_state costs more than all the rest, so what needs no search is answered without: entries
-- that see all up to the last change of anything, and up to the horizon.
CREATE FUNCTION pgcache.lookup(keys bytea[], invalid_too boolean)
RETURNS TABLE (origin text, key bytea, valid boolean, vary text[], head bytea, body bytea, meta bytea, revalidatable boolean,
               snapshot pg_snapshot, probes bigint[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    here        record;
    now         timestamptz := clock_timestamp();
    last_change xid8;
BEGIN
    SELECT c.epoch AS id, pgcache.origin(c.epoch, c.incarnation, now) AS origin, c.last_folded,
           pg_snapshot_xmax(c.horizon) AS horizon
      INTO here FROM pgcache.current c;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    last_change := greatest(here.last_folded, (SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1));
    IF EXISTS (SELECT FROM pgcache.entry e
                WHERE e.key = ANY (keys)
                  AND (pg_snapshot_xmin(e.snapshot) <= last_change OR pg_snapshot_xmin(e.snapshot) < here.horizon))
    THEN
        RETURN QUERY
        SELECT here.origin, e.key, e.valid, e.vary, e.head, e.body, e.meta, e.revalidatable, e.snapshot, e.probes
          -- OFFSET 0: or `valid` would be computed wherever it is mentioned
          FROM (SELECT s.*, s.usable AND s.unchanged AS valid
                  FROM pgcache.entry_state s
                 WHERE s.key = ANY (keys) AND s.keep_until > now
                OFFSET 0) e
         WHERE e.valid OR e.revalidatable OR invalid_too;
    ELSE
        RETURN QUERY
        SELECT here.origin, e.key, true, e.vary, e.head, e.body, e.meta, e.revalidatable, e.snapshot, e.probes
          FROM pgcache.entry e
         WHERE e.key = ANY (keys) AND e.keep_until > now AND e.epoch = here.id;
    END IF;
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT here.origin, NULL::bytea, NULL::boolean, NULL::text[], NULL::bytea, NULL::bytea, NULL::bytea, NULL::boolean,
               NULL::pg_snapshot, NULL::bigint[];
    END IF;
END
$$;

-- The next transaction's id as of now. A VOLATILE function of plpgsql has a snapshot of its own (READ COMMITTED); that of the
-- statement is older than what others have stored while it waited for them.
CREATE FUNCTION pgcache.next_xid() RETURNS xid8
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$ BEGIN RETURN pg_snapshot_xmax(pg_current_snapshot()); END $$;

-- Claims the lease of a key for `life` seconds: 'granted'; 'held', by somebody else; or 'look again': an answer was
-- stored by a transaction that `seen`, the snapshot of the claimant's lookup, does not see. Granted is also what cannot be
-- recorded, because another key's lease stands in its place: then others who fill the same key are not held off. Waits for
-- nobody but another claim of this place. Index: lease_pkey.
CREATE FUNCTION pgcache.claim(key bytea, holder bigint, life float8, seen text) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    known pgcache.lease;
BEGIN
    SELECT l.* INTO known FROM pgcache.lease l WHERE l.place = pgcache.lease_place(key);
    IF known.key = key
       AND known.released < pg_snapshot_xmax(pg_current_snapshot()) -- else it is of another life of this database
       AND NOT pg_visible_in_snapshot(known.released, seen::pg_snapshot) THEN
        RETURN 'look again';
    END IF;
    IF known.released IS NULL AND known.expires_at > clock_timestamp() THEN
        RETURN CASE WHEN known.key = key THEN 'held' ELSE 'granted' END;
    END IF;
    INSERT INTO pgcache.lease AS l (key, holder, expires_at)
    VALUES (key, holder, clock_timestamp() + make_interval(secs => life))
        ON CONFLICT ON CONSTRAINT lease_pkey DO UPDATE
       SET key = EXCLUDED.key, holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at, released = NULL
     -- as it was when it was looked at; if not, it is held, hardly ever by another key, which the next claim will see
     WHERE l.key = known.key AND l.holder = known.holder AND l.expires_at = known.expires_at AND l.released IS NOT DISTINCT FROM known.released;
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
SET jit = off
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
-- function in FROM costs as much as all the rest. For the same reason the usual case, a past without transactions in
-- progress, is one statement; the conditions without a subquery cost nothing.
CREATE FUNCTION pgcache.feed(past pg_snapshot, max_keys integer) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    here record;
BEGIN
    SELECT c.epoch::text, c.incarnation, c.horizon, c.log_floor, pg_current_snapshot()::text AS snapshot,
           (current_setting('default_transaction_isolation') = 'read committed')::text AS read_committed,
           ARRAY(SELECT unnest(i.keys) FROM pgcache.invalidation i WHERE i.xid >= pg_snapshot_xmax(past)
                 LIMIT max_keys + 1) AS changes
      INTO here FROM pgcache.current c;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF past IS NULL OR pg_snapshot_xmax(past) < pg_snapshot_xmax(here.horizon)
       OR pg_snapshot_xmax(past) < pg_snapshot_xmax(here.log_floor)
    THEN
        here.changes := NULL;
    ELSIF pg_snapshot_xmin(past) < pg_snapshot_xmax(past) THEN
        here.changes := CASE
            WHEN EXISTS (SELECT FROM pg_snapshot_xip(past) AS x (xid)
                          WHERE pg_visible_in_snapshot(x.xid, here.horizon)
                             OR pg_visible_in_snapshot(x.xid, here.log_floor)) THEN NULL
            ELSE here.changes || ARRAY(SELECT unnest(i.keys) FROM pgcache.invalidation i
                                        WHERE i.xid = ANY (ARRAY(SELECT pg_snapshot_xip(past)))
                                        LIMIT max_keys + 1)
        END;
    END IF;
    IF cardinality(here.changes) > max_keys THEN
        here.changes := NULL;
    END IF;
    RETURN ARRAY[here.epoch, here.incarnation, here.snapshot, here.read_committed, array_to_string(here.changes, ',')];
END
$$;
