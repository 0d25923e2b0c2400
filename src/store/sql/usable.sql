-- Whether the snapshot of the entry `e` is not older than the horizon of the state `p` of the log.
pg_snapshot_xmax(e.snapshot) >= pg_snapshot_xmax(p.horizon)
AND NOT EXISTS (SELECT FROM pg_snapshot_xip(e.snapshot) AS x (xid)
                 WHERE pg_visible_in_snapshot(x.xid, p.horizon))
