-- Whether the log in its state `p` has no change of the entry `e` that its snapshot S does not see. Unseen are, by the definition
-- of a snapshot, xid >= xmax(S) and xip(S). Changes are in `changed` (found by primary key, one probe for each key of the entry)
-- or in the part of the log that is not folded yet: of S and F, the later one says which rows of the log are unseen by both (two
-- index conditions on invalidation_xid). What takes any type is named in full: in a statement that a session keeps, an exact
-- match in a schema of the application's would be preferred.
NOT EXISTS (SELECT FROM pgcache.changed c
             WHERE c.key = ANY (e.probes)
               AND (EXISTS (SELECT FROM pg_catalog.unnest(c.xids) AS x (xid)
                             WHERE NOT pg_visible_in_snapshot(x.xid, e.snapshot))
                    OR c.since IS NOT NULL
                       AND EXISTS (SELECT FROM pg_snapshot_xip(e.snapshot) AS x (xid)
                                    WHERE x.xid >= c.since AND x.xid < c.xids[1])
                    -- as with the horizon
                    OR pg_snapshot_xmax(e.snapshot) < pg_snapshot_xmax(c.seen)
                    OR c.seen IS NOT NULL
                       AND EXISTS (SELECT FROM pg_snapshot_xip(e.snapshot) AS x (xid)
                                    WHERE pg_visible_in_snapshot(x.xid, c.seen))))
AND NOT (p.newest >= greatest(pg_snapshot_xmax(e.snapshot), pg_snapshot_xmax(p.folded))
         AND EXISTS (SELECT FROM pgcache.invalidation i
                      WHERE i.xid >= greatest(pg_snapshot_xmax(e.snapshot), pg_snapshot_xmax(p.folded))
                        AND i.keys OPERATOR(pg_catalog.&&) e.probes))
AND NOT EXISTS (SELECT FROM pgcache.invalidation i
                 WHERE i.xid = ANY (ARRAY(SELECT pg_snapshot_xip(
                                       CASE WHEN pg_snapshot_xmax(e.snapshot) >= pg_snapshot_xmax(p.folded)
                                            THEN e.snapshot ELSE p.folded END)))
                   AND i.keys OPERATOR(pg_catalog.&&) e.probes
                   AND NOT pg_visible_in_snapshot(i.xid, e.snapshot))
