-- Removes what has expired or can never be valid again from the pages $1 (inclusive) to $2 of the table: a
-- TID range scan, since an index on keep_until would make every rewrite of an entry a non-HOT update.
DELETE FROM pgcache.entry
 WHERE key = ANY (ARRAY(
        SELECT e.key
          FROM pgcache.entry e CROSS JOIN pgcache.epoch p
         WHERE e.ctid >= format('(%s,0)', $1::bigint)::tid
           AND e.ctid <  format('(%s,0)', $2::bigint)::tid
           AND (e.keep_until <= clock_timestamp()
                OR e.epoch <> p.id
                OR pg_snapshot_xmax(e.snapshot) < pg_snapshot_xmax(p.horizon))
           FOR UPDATE OF e SKIP LOCKED))
