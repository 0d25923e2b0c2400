-- Where `entry` is partitioned, what asks for entries by their keys asks for one after the other. A plan that is made once does
-- not know the partitions of `key = ANY (keys)` and looks into all of them; with `key = wanted` it looks into that of the key.

-- As in read.sql, for each key by itself: what needs no search comes first.
CREATE OR REPLACE FUNCTION pgcache.lookup(keys bytea[], invalid_too boolean)
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
    wanted      bytea;
    is_found    boolean := false;
BEGIN
    SELECT c.epoch AS id, pgcache.origin(c.epoch, c.incarnation, now) AS origin, c.last_folded,
           pg_snapshot_xmax(c.horizon) AS horizon
      INTO here FROM pgcache.current c;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    last_change := greatest(here.last_folded, (SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1));
    FOREACH wanted IN ARRAY keys LOOP
        RETURN QUERY
        SELECT here.origin, e.key, true, e.vary, e.head, e.body, e.meta, e.revalidatable, e.snapshot, e.probes
          FROM pgcache.entry e
         WHERE e.key = wanted AND e.keep_until > now AND e.epoch = here.id
           AND pg_snapshot_xmin(e.snapshot) > last_change AND pg_snapshot_xmin(e.snapshot) >= here.horizon;
        IF NOT FOUND AND EXISTS (SELECT FROM pgcache.entry e
                                  WHERE e.key = wanted
                                    AND (pg_snapshot_xmin(e.snapshot) <= last_change
                                         OR pg_snapshot_xmin(e.snapshot) < here.horizon))
        THEN
            RETURN QUERY
            SELECT here.origin, e.key, e.valid, e.vary, e.head, e.body, e.meta, e.revalidatable, e.snapshot, e.probes
              -- OFFSET 0: or `valid` would be computed wherever it is mentioned
              FROM (SELECT s.*, s.usable AND s.unchanged AS valid
                      FROM pgcache.entry_state s
                     WHERE s.key = wanted AND s.keep_until > now
                    OFFSET 0) e
             WHERE e.valid OR e.revalidatable OR invalid_too;
        END IF;
        is_found := is_found OR FOUND;
    END LOOP;
    IF NOT is_found THEN
        RETURN QUERY
        SELECT here.origin, NULL::bytea, NULL::boolean, NULL::text[], NULL::bytea, NULL::bytea, NULL::bytea, NULL::boolean,
               NULL::pg_snapshot, NULL::bigint[];
    END IF;
END
$$;

-- As in janitor.sql, for each key by itself.
CREATE OR REPLACE FUNCTION pgcache.add_uses(keys bytea[], uses float8[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now  float8 := pgcache.value_now();
    used record;
BEGIN
    FOR used IN SELECT u.key, u.uses FROM unnest(keys, uses) AS u (key, uses) LOOP
        PERFORM FROM pgcache.entry o WHERE o.key = used.key FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE pgcache.entry e SET value = pgcache.value_used(e.value, used.uses, now) WHERE e.key = used.key;
        END IF;
    END LOOP;
END
$$;
