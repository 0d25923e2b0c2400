-- The snapshot of this statement, if nothing with these keys ($1) has changed since the snapshot $2 but by the transaction $3, which
-- has committed; in the life of the database with the epoch $4 and the incarnation $5. That is what an answer gets that was made
-- before $3 and is good after it. $2 with $3 added to it would see too little: fold() drops a change when a later one of the same key
-- is there, since whoever sees that one sees the former, too. That holds of every snapshot that some transaction has had. Index:
-- invalidation_xid.
SELECT s::text
  FROM pg_current_snapshot() AS s
 WHERE pg_visible_in_snapshot($3::xid8, s)
   AND EXISTS (SELECT FROM pgcache.current c WHERE c.epoch = $4::uuid AND c.incarnation = $5)
   AND pgcache.unchanged_between($1, $2, pgcache.make_snapshot(pg_snapshot_xmax(s), ARRAY(SELECT pg_snapshot_xip(s) UNION ALL
                                                                                         SELECT $3::xid8))::text)
