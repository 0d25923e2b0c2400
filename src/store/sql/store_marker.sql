-- Records that the answers for a URI vary with the fields $5, and that $6 is the key of one of them. The 32
-- latest variants stay; returns the keys of those that give way. $1: the key of the URI, $2-$4: where the
-- fill began, $7: when,
-- $8: how long the variant is of use, $9-$10: for people. Index: entry_pkey.
INSERT INTO pgcache.entry AS e
       (key, epoch, snapshot, probes, born_at, expires_at, keep_until, revalidatable, vary, variants,
        authority, path, scopes, checksum, head, body)
SELECT $1, c.epoch, s.snapshot, '{}', clock_timestamp(), kept.until, kept.until, false, $5, ARRAY[$6],
       $9, $10, '{}', '', '', ''
  FROM pgcache.current c
 CROSS JOIN (SELECT $4::text::pg_snapshot AS snapshot) s
 CROSS JOIN (SELECT to_timestamp($7) + make_interval(secs => $8) AS until) kept
 WHERE c.epoch = $2::text::uuid
   AND c.incarnation = $3
   AND pg_snapshot_xmax(s.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
    ON CONFLICT (key) DO UPDATE
       SET epoch = EXCLUDED.epoch, snapshot = EXCLUDED.snapshot, probes = '{}',
           expires_at = CASE WHEN e.epoch = EXCLUDED.epoch THEN greatest(e.expires_at, EXCLUDED.expires_at)
                             ELSE EXCLUDED.expires_at END,
           keep_until = CASE WHEN e.epoch = EXCLUDED.epoch THEN greatest(e.keep_until, EXCLUDED.keep_until)
                             ELSE EXCLUDED.keep_until END,
           revalidatable = false, vary = EXCLUDED.vary,
           variants = CASE WHEN e.epoch = EXCLUDED.epoch AND e.vary = EXCLUDED.vary
                           THEN (EXCLUDED.variants || array_remove(e.variants, EXCLUDED.variants[1]))[1:33]
                           ELSE EXCLUDED.variants END,
           tenant = NULL, scopes = '{}', checksum = '', head = '', body = '', unpacked = NULL,
           value = pgcache.value_used(e.value, 1, EXCLUDED.value)
     WHERE e.epoch <> EXCLUDED.epoch
        OR pg_snapshot_xmax(e.snapshot) <= pg_snapshot_xmax(EXCLUDED.snapshot)
        OR pg_snapshot_xmax(e.snapshot) > pgcache.next_xid()
RETURNING e.variants[33:],
          pgcache.weight(e.head, e.body, e.path, e.meta, e.scopes, e.variants) AS weight,
          (SELECT pgcache.weight(o.head, o.body, o.path, o.meta, o.scopes, o.variants)
             FROM pgcache.entry o WHERE o.key = $1) AS replaced
