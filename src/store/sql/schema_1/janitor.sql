-- The janitor: removes what is of no use, and what is of least use where there is more than there may be.
--
-- It walks through the pages of `entry` in small steps, each of which is a transaction of its own, and remembers in
-- `walk` where it is: whoever has the lock of that row makes the next step, be it an instance, another one, or pg_cron;
-- one that dies leaves nothing behind that another one could not go on from. On the way it counts what stays, and how
-- much of it is of how much use. When there is too much, the count of the round before says below which use entries have
-- to go, and the next round takes them away, until there is little enough. An index on what the walk asks for would make
-- each rewrite and each use of an entry a non-HOT update.
--
-- Use is a count of requests that decays with a half-life of an hour, as the logarithm of its value at a fixed time
-- ("forward decay", Cormode et al. 2009): a use at the time t, in hours, adds 2^t. So the values of different times can be
-- compared, and nothing has to be touched for decaying. Filling an entry counts as one use, since somebody asked for
-- it; hits are counted by the instances and added now and then.
--
-- Measured on PostgreSQL 15, 2 cores, 100,000 entries of 1 KB: a round takes 0.27 s; one that evicts 13 % of them, 0.33 s; 1.8 s
-- where each entry has to be looked up among 100,000 changes.

-- What a use is worth now that was the only one.
CREATE FUNCTION pgcache.value_now() RETURNS float8
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN extract(epoch FROM clock_timestamp())::float8 / 3600;

-- A value and the uses that came to it: log2(2^value + uses * 2^now), written so that nothing overflows.
CREATE FUNCTION pgcache.value_used(value float8, uses float8, now float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest(value, now + ln(uses) / ln(2::float8))
       + ln(1 + exp(-least(abs(value - now - ln(uses) / ln(2::float8)), 60) * ln(2::float8))) / ln(2::float8);

-- What an entry takes on the disk, nearly: its columns (most of what stands in `meta` stands beside it, too), a flat rate for those of
-- fixed size, the tuple's header and the index, and for a body out of line the headers and the index of its pieces. Nothing is detoasted for that.
CREATE FUNCTION pgcache.weight(head bytea, body bytea, path text, meta bytea, scopes text[], variants bytea[])
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (216 + octet_length(head) + octet_length(body) + octet_length(body) / 1996 * 64 + octet_length(path)
        + 2 * octet_length(meta) + 48 * coalesce(array_length(scopes, 1), 0)
        + 40 * coalesce(array_length(variants, 1), 0))::bigint;

-- Values in 999 classes, finer the closer they are to `reference`: below it, a class is a sixteenth of the time since
-- the only use (at first: a second and less); above, a sixteenth of a doubling.
CREATE FUNCTION pgcache.value_class(value float8, reference float8) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN value >= reference THEN 501 + least(floor((value - reference) * 16), 498)
            ELSE greatest(500 - floor(16 * ln(1 + (reference - value) * 3600) / ln(2::float8)), 1) END::integer;

-- Below this are the values of a class and of the classes before it.
CREATE FUNCTION pgcache.value_class_end(class integer, reference float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN class >= 999 THEN 'Infinity'
            WHEN class > 500 THEN reference + (class - 500) / 16.0::float8
            ELSE reference - (exp((500 - class) / 16.0::float8 * ln(2::float8)) - 1) / 3600 END;

-- Of all that belongs to the entries: rows, what stands out of line, indexes.
CREATE FUNCTION pgcache.size_on_disk() RETURNS bigint
LANGUAGE sql VOLATILE
RETURN (SELECT sum(pg_total_relation_size(t.relation)) FROM pgcache.entry_table t)::bigint;

-- How many bytes there may be. Less than `max_bytes` while the table is larger on the disk than 1.75 times of it: the
-- room of large bodies, which stand in another table, is of no use to small ones, so where the answers change there may
-- be plenty of room and none where it is needed. At nearly twice the bound nothing may stay: then VACUUM can give
-- everything back.
CREATE FUNCTION pgcache.bytes_allowed(max_bytes bigint) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN greatest(max_bytes - 5 * greatest(pgcache.size_on_disk() - 1.75 * max_bytes, 0), 0)::bigint;

-- One step of the walk, over that many pages (of 8 KiB); of partitions, over as many in all, the same ones of each, so
-- that none is cut down before another. `too_full`: there is more than there may be. `walked`: the
-- walk has reached the end of the table, and the next step begins at its beginning; null: somebody else is at a step.
-- `began`: this step was the first of a round.
--
-- Nobody is waited for, and nobody waits for this but who rewrites one of the entries that go.
-- A TID range scan; entry_pkey, changed_pkey; whatever the statistics say: the settings see to that.
CREATE FUNCTION pgcache.clean_step(max_entries bigint, max_bytes bigint, pages integer DEFAULT 256,
                                   OUT began boolean, OUT walked boolean, OUT too_full boolean,
                                   OUT removed bigint, OUT evicted bigint)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    here      pgcache.walk;
    stock     pgcache.room;
    part      record;
    too_many  bigint := 0;
    too_much  bigint := 0;
    gone      bigint := 0;                   -- bytes
    most      bigint;
    turns     bigint;
    turn      bigint;
    is_over   boolean;
BEGIN
    IF max_entries IS NULL OR max_entries < 1 OR max_bytes IS NULL OR max_bytes < 1 OR pages IS NULL OR pages < 1 THEN
        RAISE EXCEPTION 'pgcache.clean_step: max_entries, max_bytes and pages must be at least 1'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pgcache.require_read_committed();
    removed := 0;
    evicted := 0;
    SELECT * INTO here FROM pgcache.walk FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        INSERT INTO pgcache.walk DEFAULT VALUES ON CONFLICT DO NOTHING;
        SELECT * INTO here FROM pgcache.walk FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    -- after that, or a step of somebody else might come between
    SELECT * INTO stock FROM pgcache.room;
    IF NOT FOUND THEN
        INSERT INTO pgcache.room DEFAULT VALUES ON CONFLICT DO NOTHING;
        SELECT * INTO stock FROM pgcache.room;
    END IF;

    pages := greatest(pages / (SELECT count(*) FROM pgcache.entry_table), 1);
    most := pgcache.bytes_allowed(max_bytes);
    began := here.page = 0;
    IF began THEN
        here.reference := pgcache.value_now();
        here.entries := array_fill(0::bigint, ARRAY[999]);
        here.bytes := array_fill(0::bigint, ARRAY[999]);
        here.added_entries := stock.added_entries;
        here.added_bytes := stock.added_bytes;
        here.threshold := '-Infinity';
    END IF;
    turns := greatest(stock.entries / 100000, 1);
    turn := floor(here.reference * 60)::bigint % turns; -- by the minute in which the round began
    is_over := stock.entries > max_entries OR stock.bytes > most;
    IF is_over OR here.threshold > '-Infinity' THEN
        too_many := greatest(stock.entries - (max_entries * 0.97)::bigint, 0);
        too_much := greatest(stock.bytes - (most * 0.97)::bigint, 0);
    END IF;
    IF too_many = 0 AND too_much = 0 THEN
        here.threshold := '-Infinity';
    ELSIF began THEN
        -- none if the last round has not seen enough: then this one counts, and the next one knows
        SELECT pgcache.value_class_end(c.class, here.past_reference) INTO here.threshold
          FROM (SELECT h.class::integer, sum(h.entries) OVER w AS entries, sum(h.bytes) OVER w AS bytes
                  FROM unnest(here.past_entries, here.past_bytes) WITH ORDINALITY AS h (entries, bytes, class)
                WINDOW w AS (ORDER BY h.class)) c
         WHERE c.entries >= too_many AND c.bytes >= too_much
         ORDER BY c.class LIMIT 1;
        here.threshold := CASE WHEN most = 0 THEN 'Infinity' ELSE coalesce(here.threshold, '-Infinity') END;
    END IF;

    FOR part IN
        WITH seen AS MATERIALIZED (
            SELECT e.key, e.value, pgcache.weight(e.head, e.body, e.path, e.meta, e.scopes, e.variants) AS weight,
                   e.keep_until <= clock_timestamp()
                   OR e.epoch <> p.id
                   OR pg_snapshot_xmax(e.snapshot) < pg_snapshot_xmax(p.horizon)
                   -- Invalid for longer than since the last run of prune(); until then it may be wanted by who
                   -- arrived before, or where an invalidated answer may be served for a while.
                   -- That costs 20 µs where much was changed, so of many entries a part has its turn in each round.
                   OR (turns = 1 OR (get_byte(e.key, 0) * 256 + get_byte(e.key, 1)) % turns = turn)
                      AND NOT e.revalidatable AND e.vary IS NULL
                      AND pg_snapshot_xmin(e.snapshot) <= p.last_folded
                      AND EXISTS (SELECT FROM pgcache.changed c
                                   WHERE c.key = ANY (e.probes)
                                     AND EXISTS (SELECT FROM unnest(c.xids) AS x (xid)
                                                  WHERE NOT pg_visible_in_snapshot(x.xid, e.snapshot)
                                                    AND pg_visible_in_snapshot(x.xid, p.log_floor))) AS is_useless,
                   e.checksum
              FROM pgcache.entry e JOIN pgcache.epoch p ON p.singleton
             WHERE e.ctid >= format('(%s,0)', here.page)::tid
               AND e.ctid <  format('(%s,0)', here.page + pages)::tid
        ), ranked AS (
            SELECT s.key, s.is_useless, s.checksum,
                   row_number() OVER w AS place, sum(s.weight) OVER w - s.weight AS before
              FROM seen s WHERE s.is_useless OR s.value < here.threshold
            WINDOW w AS (PARTITION BY s.is_useless ORDER BY s.value, s.key)
        ), taken AS MATERIALIZED (
            -- as it was seen: what was used or replaced meanwhile stays
            SELECT e.key
              FROM ranked r JOIN pgcache.entry e ON e.key = r.key AND e.checksum = r.checksum
             WHERE r.is_useless
                OR e.value < here.threshold AND (r.place <= too_many OR r.before < too_much)
               FOR UPDATE OF e SKIP LOCKED
        ), gone AS (
            DELETE FROM pgcache.entry e USING taken t WHERE e.key = t.key RETURNING e.key
        )
        SELECT pgcache.value_class(s.value, here.reference) AS class, s.key IN (SELECT g.key FROM gone g) AS goes,
               s.is_useless, count(*) AS entries, sum(s.weight)::bigint AS bytes
          FROM seen s
         GROUP BY 1, 2, 3
    LOOP
        IF NOT part.goes THEN
            here.entries[part.class] := here.entries[part.class] + part.entries;
            here.bytes[part.class] := here.bytes[part.class] + part.bytes;
            CONTINUE;
        END IF;
        gone := gone + part.bytes;
        IF part.is_useless THEN
            removed := removed + part.entries;
        ELSE
            evicted := evicted + part.entries;
        END IF;
    END LOOP;

    here.page := here.page + pages;
    walked := here.page >= (SELECT max(pg_relation_size(t.relation)) FROM pgcache.entry_table t)
                            / current_setting('block_size')::bigint;
    IF walked THEN
        UPDATE pgcache.walk SET page = 0, threshold = '-Infinity', entries = '{}', bytes = '{}',
               past_reference = here.reference, past_entries = here.entries, past_bytes = here.bytes;
    ELSE
        UPDATE pgcache.walk SET page = here.page, threshold = here.threshold, reference = here.reference,
               entries = here.entries, bytes = here.bytes,
               added_entries = here.added_entries, added_bytes = here.added_bytes;
    END IF;
    -- last, since writers add to this row; of what came during the round, half is taken to have been met by it
    UPDATE pgcache.room r
       SET entries = CASE WHEN walked THEN (SELECT sum(n) FROM unnest(here.entries) n)
                                           + greatest(r.added_entries - here.added_entries, 0) / 2
                          ELSE r.entries - removed - evicted END,
           bytes = CASE WHEN walked THEN (SELECT sum(n) FROM unnest(here.bytes) n)
                                         + greatest(r.added_bytes - here.added_bytes, 0) / 2
                        ELSE r.bytes - gone END,
           churn = r.churn + gone
    RETURNING r.* INTO stock;
    too_full := stock.entries > max_entries OR stock.bytes > most
                OR NOT walked AND here.threshold > '-Infinity'
                   AND (stock.entries > max_entries * 0.97 OR stock.bytes > most * 0.97);
END
$$;

-- Whether the caller may vacuum the tables: else VACUUM would say so in the server's log each time.
CREATE FUNCTION pgcache.may_vacuum() RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000
       AND (SELECT bool_and(has_table_privilege(t.relation, 'MAINTAIN')) FROM pgcache.entry_table t) THEN
        RETURN true;
    END IF;
    RETURN (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = 'pgcache.entry'::regclass);
END
$$;

-- Because the table is too large, unless that was tried a moment ago, or because much was replaced since the last time.
CREATE FUNCTION pgcache.vacuum_is_due(room pgcache.room, is_large boolean, max_bytes bigint, at_once boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN is_large AND (at_once OR clock_timestamp() > room.vacuumed_at + room.pause)
        OR room.churn > least(max_bytes, greatest(room.bytes, 8388608)) / 8;
END
$$;

-- What an instance has stored since it said so last: entries and bytes that are new, less those that they replaced,
-- and bytes that they replaced; all of them may be 0. Returns what there is by that, and
--   holds: nothing more is to be stored for now. There is too much (2 % above the bound), or the table has
--          grown to 1.75 times its bound on the disk, and VACUUM has not made room in it;
--   evict: there is more than there may be;
--   vacuum: VACUUM is due, for the size of what was deleted and replaced, or to make room.
--
-- Whether VACUUM has made room is seen by what it reported: an open transaction may see the dead rows still, and then
-- it cannot. After that it is tried again later and later (see claim_vacuum).
CREATE FUNCTION pgcache.report(new_entries bigint, new_bytes bigint, replaced_bytes bigint, max_entries bigint, max_bytes bigint,
                               OUT entries bigint, OUT bytes bigint, OUT holds boolean, OUT evict boolean, OUT vacuum boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
<<here>>
DECLARE
    stock    pgcache.room;
    size     bigint := pgcache.size_on_disk();
    most     bigint := pgcache.bytes_allowed(max_bytes);
    vacuums  bigint;
    dead     float8;
    is_large boolean;
BEGIN
    SELECT sum(pg_stat_get_vacuum_count(t.relation) + pg_stat_get_autovacuum_count(t.relation)),
           sum(pg_relation_size(t.relation) * pg_stat_get_dead_tuples(t.relation)::float8
               / greatest(pg_stat_get_dead_tuples(t.relation) + pg_stat_get_live_tuples(t.relation), 1))
      INTO vacuums, dead
      FROM (SELECT e.relation FROM pgcache.entry_table e UNION ALL SELECT e.toast FROM pgcache.entry_table e) t;
    INSERT INTO pgcache.room AS r (entries, bytes, added_entries, added_bytes, churn)
    VALUES (greatest(new_entries, 0), greatest(new_bytes, 0), new_entries, new_bytes, replaced_bytes)
        ON CONFLICT (singleton) DO UPDATE
       SET entries = greatest(r.entries + new_entries, 0), bytes = greatest(r.bytes + new_bytes, 0),
           added_entries = r.added_entries + new_entries, added_bytes = r.added_bytes + new_bytes,
           churn = r.churn + replaced_bytes, vacuums = here.vacuums,
           -- the size at which there is room inside
           size = CASE WHEN r.vacuums = here.vacuums THEN r.size
                       WHEN here.dead < 0.35 * max_bytes THEN here.size
                       ELSE 0 END
    RETURNING r.* INTO stock;
    entries := stock.entries;
    bytes := stock.bytes;
    is_large := here.size > 1.75 * max_bytes AND here.size > stock.size + max_bytes / 100 OR most = 0;
    holds := is_large OR entries > 1.02 * max_entries OR bytes > 1.02 * most;
    evict := entries > max_entries OR bytes > most;
    vacuum := pgcache.vacuum_is_due(stock, is_large, max_bytes, false);
END
$$;

-- Whether the caller is the one to vacuum now. Where that has not made room, the next time is further away, but for who
-- wants it at once. Null: it is not; true: the table is too large, so its end should be given back to the system, if it
-- is empty. (For that VACUUM locks the table for an instant, but not if anybody is at it.)
CREATE FUNCTION pgcache.claim_vacuum(max_bytes bigint, at_once boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_large boolean := pgcache.size_on_disk() > 1.75 * max_bytes;
BEGIN
    IF NOT pgcache.may_vacuum() THEN
        RETURN NULL;
    END IF;
    UPDATE pgcache.room r
       SET churn = 0, vacuumed_at = clock_timestamp(),
           pause = CASE WHEN is_large AND r.size = 0 THEN least(2 * r.pause, interval '1 min') ELSE interval '1 s' END
     WHERE pgcache.vacuum_is_due(r, is_large, max_bytes, at_once);
    RETURN CASE WHEN FOUND THEN is_large END;
END
$$;

-- Adds uses to the values of entries, without waiting for anybody who is at one of them. Index: entry_pkey; the columns that
-- change are not indexed (HOT).
CREATE FUNCTION pgcache.add_uses(keys bytea[], uses float8[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now float8 := pgcache.value_now();
BEGIN
    WITH taken AS MATERIALIZED (
        SELECT o.key, u.uses
          FROM unnest(keys, uses) AS u (key, uses) JOIN pgcache.entry o ON o.key = u.key
           FOR UPDATE OF o SKIP LOCKED
    )
    UPDATE pgcache.entry e SET value = pgcache.value_used(e.value, t.uses, now)
      FROM taken t WHERE e.key = t.key;
END
$$;

-- The next step of cleaning up. `goes_on`: there is something left to do. `rounds`: how many rounds were begun, to be
-- handed to the next call; 0 for the first one.
CREATE FUNCTION pgcache.clean_on(max_entries bigint, max_bytes bigint, INOUT rounds integer, OUT goes_on boolean, OUT removed bigint, OUT evicted bigint)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    step record;
BEGIN
    SELECT * INTO step FROM pgcache.clean_step(max_entries, max_bytes);
    removed := step.removed;
    evicted := step.evicted;
    IF step.walked IS NULL THEN              -- somebody else is cleaning up
        goes_on := false;
    ELSE
        rounds := rounds + step.began::integer;
        goes_on := NOT step.walked OR rounds = 0 OR step.too_full AND rounds < 4;
    END IF;
END
$$;

CREATE FUNCTION pgcache.is_over(begun timestamptz, seconds float8) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN clock_timestamp() > begun + make_interval(secs => seconds);

-- What the instances do in the background, for pg_cron and for people:
--     SELECT cron.schedule('pgcache', '* * * * *', 'CALL pgcache.cleanup()');
-- in many small transactions, for as many seconds at most; the next call goes on from there. The role needs what
-- that of an application needs, and EXECUTE on this procedure. It does not vacuum, which no procedure can.
--
-- A procedure that ends transactions can have no search_path of its own: whatever can be resolved by one stands in the
-- functions.
CREATE PROCEDURE pgcache.cleanup(max_entries bigint DEFAULT 1000000, max_bytes bigint DEFAULT 1073741824,
                                 max_log_rows bigint DEFAULT 1000000, seconds float8 DEFAULT 20)
LANGUAGE plpgsql
AS $$
DECLARE
    begun   pg_catalog.timestamptz := pg_catalog.clock_timestamp();
    rounds  pg_catalog.int4 := 0;
    goes_on pg_catalog.bool;
BEGIN
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
    PERFORM pgcache.prune(max_log_rows);
    LOOP
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
        SELECT c.rounds, c.goes_on INTO rounds, goes_on FROM pgcache.clean_on(max_entries, max_bytes, rounds) AS c;
        EXIT WHEN NOT goes_on OR pgcache.is_over(begun, seconds);
    END LOOP;
END
$$;

