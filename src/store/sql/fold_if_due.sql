-- Folds if the tail of the log has grown to $1 rows and nobody folded within the last half second.
SELECT pgcache.fold()
  FROM pgcache.epoch p
 WHERE p.folded_at < clock_timestamp() - interval '500 ms'
   AND (SELECT count(*) FROM (SELECT FROM pgcache.invalidation i
                               WHERE i.xid >= pg_snapshot_xmax(p.folded) LIMIT $1) t) >= $1
