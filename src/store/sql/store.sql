-- Stores entries, of each of those whose fill's epoch and incarnation are still the current ones and whose snapshot is
-- this database's and not older than the horizon. An entry with a later snapshot is not replaced, unless that
-- lies in the future: such a one is damaged. Returns what each takes, and what the one that it replaces took.
-- All in one statement, since to plan it takes six times as long as to store an entry; in the order of their keys, since two
-- that store the same ones in different orders would wait for each other. $23 and $24: probes and scopes of all of them.
-- Index: entry_pkey. The columns that change on a rewrite are not indexed (HOT).
WITH c AS MATERIALIZED (SELECT c.epoch, c.incarnation, c.horizon FROM pgcache.current c)
INSERT INTO pgcache.entry AS e
       (key, epoch, snapshot, probes, born_at, expires_at, keep_until, revalidatable,
        authority, path, route, tenant, scopes, checksum, cost, unpacked, head, body)
SELECT r.key, c.epoch, r.snapshot, $23[r.first_probe:r.last_probe],
       to_timestamp(r.at) - make_interval(secs => r.age),
       to_timestamp(r.at) + make_interval(secs => r.ttl),
       to_timestamp(r.at) + make_interval(secs => r.keep),
       r.revalidatable, r.authority, r.path, r.route, r.tenant, $24[r.first_scope:r.last_scope], r.checksum, r.cost, r.unpacked,
       r.head, r.body
  FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
       AS r (key, epoch, incarnation, snapshot, at, age, ttl, keep, revalidatable, authority, path, route, tenant, checksum, cost,
             unpacked, head, body, first_probe, last_probe, first_scope, last_scope)
  JOIN c ON c.epoch = r.epoch::uuid AND c.incarnation = r.incarnation
 WHERE to_timestamp(r.at) + make_interval(secs => r.keep) > clock_timestamp()
   AND pg_snapshot_xmax(r.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
   AND pg_snapshot_xmax(r.snapshot) >= pg_snapshot_xmax(c.horizon)
   AND NOT EXISTS (SELECT FROM pg_snapshot_xip(r.snapshot) AS x (xid)
                    WHERE pg_visible_in_snapshot(x.xid, c.horizon))
 ORDER BY r.key
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
        OR pg_snapshot_xmax(e.snapshot) > pgcache.next_xid()
RETURNING pgcache.weight(e.head, e.body, e.path, e.meta, e.scopes, e.variants) AS weight,
          -- what the statement's snapshot sees under this key is what was there before
          (SELECT pgcache.weight(o.head, o.body, o.path, o.meta, o.scopes, o.variants)
             FROM pgcache.entry o WHERE o.key = e.key) AS replaced
