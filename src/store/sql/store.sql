-- Stores an entry if the epoch and incarnation of its fill are still the current ones and its snapshot is
-- this database's and not older than the horizon. An entry with a later snapshot is not replaced, unless that
-- lies in the future: such a one is damaged. Returns what it takes, and what the one that it replaces took.
-- Index: entry_pkey. The columns that change on a rewrite are not indexed (HOT).
INSERT INTO pgcache.entry AS e
       (key, epoch, snapshot, probes, born_at, expires_at, keep_until, revalidatable,
        authority, path, tenant, scopes, checksum, head, body, route, cost, unpacked)
SELECT $1, c.epoch, s.snapshot, $5,
       to_timestamp($6) - make_interval(secs => $7),
       to_timestamp($6) + make_interval(secs => $8),
       to_timestamp($6) + make_interval(secs => $9),
       $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20
  FROM pgcache.current c
 CROSS JOIN (SELECT $4::text::pg_snapshot AS snapshot) s
 WHERE c.epoch = $2::text::uuid
   AND c.incarnation = $3
   AND to_timestamp($6) + make_interval(secs => $9) > clock_timestamp()
   AND pg_snapshot_xmax(s.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
   AND pg_snapshot_xmax(s.snapshot) >= pg_snapshot_xmax(c.horizon)
   AND NOT EXISTS (SELECT FROM pg_snapshot_xip(s.snapshot) AS x (xid)
                    WHERE pg_visible_in_snapshot(x.xid, c.horizon))
    ON CONFLICT (key) DO UPDATE
       SET epoch = EXCLUDED.epoch, snapshot = EXCLUDED.snapshot, probes = EXCLUDED.probes,
           born_at = EXCLUDED.born_at, expires_at = EXCLUDED.expires_at, keep_until = EXCLUDED.keep_until,
           revalidatable = EXCLUDED.revalidatable, vary = NULL, variants = NULL,
           authority = EXCLUDED.authority, path = EXCLUDED.path, route = EXCLUDED.route, cost = EXCLUDED.cost, tenant = EXCLUDED.tenant,
           scopes = EXCLUDED.scopes, checksum = EXCLUDED.checksum, head = EXCLUDED.head, body = EXCLUDED.body,
           unpacked = EXCLUDED.unpacked,
           -- somebody asked for it, or it would not be filled
           value = pgcache.value_used(e.value, 1, EXCLUDED.value)
     WHERE e.epoch <> EXCLUDED.epoch
        OR pg_snapshot_xmax(e.snapshot) <= pg_snapshot_xmax(EXCLUDED.snapshot)
        OR pg_snapshot_xmax(e.snapshot) > pg_snapshot_xmax(pg_current_snapshot())
RETURNING pgcache.weight(e.head, e.body, e.path, e.probes, e.scopes, e.variants) AS weight,
          -- what the statement's snapshot sees under this key is what was there before
          (SELECT pgcache.weight(o.head, o.body, o.path, o.probes, o.scopes, o.variants)
             FROM pgcache.entry o WHERE o.key = $1) AS replaced
