-- Whether the snapshot of the entry `e` sees all up to the last change of anything, and up to the horizon, in the state `p` of the
-- log: then there is nothing to search for.
pg_snapshot_xmin(e.snapshot) > p.last_change AND pg_snapshot_xmin(e.snapshot) >= pg_snapshot_xmax(p.horizon)
