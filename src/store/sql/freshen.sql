-- Gives the entry that a 304 was about the snapshot, the times and the head that the answer brought; its body stays
-- where it is, and so do the scopes that it was made from (in $5, and here, for people). $17: the checksum of the entry as it was; one with another was
-- replaced meanwhile. The other parameters are those of store.sql.
UPDATE pgcache.entry AS e
   SET snapshot = s.snapshot, probes = $5,
       born_at = to_timestamp($6) - make_interval(secs => $7),
       expires_at = to_timestamp($6) + make_interval(secs => $8),
       keep_until = to_timestamp($6) + make_interval(secs => $9),
       revalidatable = $10, authority = $11, path = $12, route = $18, cost = $19, tenant = $13,
       scopes = ARRAY(SELECT DISTINCT s.scope FROM pg_catalog.unnest(e.scopes OPERATOR(pg_catalog.||) $14) AS s (scope) ORDER BY s.scope), checksum = $15, head = $16,
       value = pgcache.value_used(e.value, 1, pgcache.value_now())
  FROM pgcache.current c
 CROSS JOIN (SELECT $4::text::pg_snapshot AS snapshot) s
 WHERE e.key = $1
   AND e.checksum = $17
   AND e.unpacked IS NOT DISTINCT FROM $20
   AND e.epoch = c.epoch
   AND c.epoch = $2::text::uuid
   AND c.incarnation = $3
   AND pg_snapshot_xmax(s.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
   AND pg_snapshot_xmax(s.snapshot) >= pg_snapshot_xmax(e.snapshot)
   AND pg_snapshot_xmax(s.snapshot) >= pg_snapshot_xmax(c.horizon)
   AND NOT EXISTS (SELECT FROM pg_snapshot_xip(s.snapshot) AS x (xid)
                    WHERE pg_visible_in_snapshot(x.xid, c.horizon))
-- the body is not written again, if it stands out of line
RETURNING pgcache.weight(e.head, '', e.path, e.probes, e.scopes, e.variants) AS weight,
          pgcache.weight(e.head, '', e.path, e.probes, e.scopes, e.variants) AS replaced
