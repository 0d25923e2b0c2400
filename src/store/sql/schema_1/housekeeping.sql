-- Gives the database a new epoch, if it has none or another database's, and empties what belonged to the
-- old one. One of any number of callers does it; the others wait for it. Not while a transaction is
-- prepared: its change survived the crash, its (unlogged) row in the log did not.
-- Returns whether the epoch is good now.
CREATE FUNCTION pgcache.renew_epoch() RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET jit = off
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
    DELETE FROM pgcache.lease;
    DELETE FROM pgcache.room;
    DELETE FROM pgcache.walk;
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
SET jit = off
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
SET jit = off
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

-- A schema that was renamed, and whose name this one now has, may get its name back. What changes in between is written
-- down here, and nothing in there will know of it: its epoch ends. Only where it belongs to whoever creates this one: to
-- write to somebody else's table may run somebody else's triggers.
DO $$
DECLARE
    former name;
BEGIN
    FOR former IN SELECT n.nspname
                    FROM pg_proc p
                    JOIN pg_namespace n ON n.oid = p.pronamespace
                    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'epoch' AND c.relkind = 'r'
                    JOIN pg_roles o ON o.rolname = current_user
                   WHERE p.proname = 'renew_epoch' AND p.oid <> 'pgcache.renew_epoch()'::regprocedure
                     AND strpos(p.prosrc, 'pgcache.epoch') > 0
                     AND p.proowner = o.oid AND c.relowner = o.oid LOOP
        EXECUTE format('DELETE FROM %I.epoch', former);
    END LOOP;
END
$$;
