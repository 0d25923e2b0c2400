-- Gives the entry that a 304 was about the snapshot, the times and the head that the answer brought; its body stays
-- where it is, and so do the scopes that it was made from (in $23, and here, for people). `was`: the checksum of the entry as it
-- was; one with another was replaced meanwhile. The other parameters are those of store.sql.
WITH c AS MATERIALIZED (SELECT c.epoch, c.incarnation, c.horizon FROM pgcache.current c)
UPDATE pgcache.entry AS e
   SET snapshot = r.snapshot, probes = $23[r.first_probe:r.last_probe],
       born_at = to_timestamp(r.at) - make_interval(secs => r.age),
       expires_at = to_timestamp(r.at) + make_interval(secs => r.ttl),
       keep_until = to_timestamp(r.at) + make_interval(secs => r.keep),
       revalidatable = r.revalidatable, authority = r.authority, path = r.path, route = r.route, cost = r.cost, tenant = r.tenant,
       scopes = ARRAY(SELECT DISTINCT s.scope
                        FROM pg_catalog.unnest(e.scopes OPERATOR(pg_catalog.||) $24[r.first_scope:r.last_scope]) AS s (scope)
                       ORDER BY s.scope),
       checksum = r.checksum, unpacked = r.unpacked, head = r.head,
       value = pgcache.value_used(e.value, 1, pgcache.value_now())
  FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
       AS r (key, epoch, incarnation, snapshot, at, age, ttl, keep, revalidatable, authority, path, route, tenant, checksum, cost,
             unpacked, head, was, first_probe, last_probe, first_scope, last_scope)
  JOIN c ON c.epoch = r.epoch::uuid AND c.incarnation = r.incarnation
 WHERE e.key = $1[1] AND e.key = r.key -- there is one; found by its index, whatever joins may not be used
   AND substring(e.meta FROM octet_length(e.meta) - 15) = r.was -- which whoever asked for it has read there
   AND e.epoch = c.epoch
   AND pg_snapshot_xmax(r.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
   AND pg_snapshot_xmax(r.snapshot) >= pg_snapshot_xmax(e.snapshot)
   AND pg_snapshot_xmax(r.snapshot) >= pg_snapshot_xmax(c.horizon)
   AND NOT EXISTS (SELECT FROM pg_snapshot_xip(r.snapshot) AS x (xid)
                    WHERE pg_visible_in_snapshot(x.xid, c.horizon))
-- the body is not written again, if it stands out of line
RETURNING pgcache.weight(e.head, '', e.path, e.meta, e.scopes, e.variants) AS weight,
          pgcache.weight(e.head, '', e.path, e.meta, e.scopes, e.variants) AS replaced
