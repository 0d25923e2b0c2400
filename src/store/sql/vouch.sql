-- Whether an answer that was made from what a replica had (snapshot $2) is good as of $3 for these keys ($1), and the
-- replica has this server's history: system identifier $4, timeline $5, and no transaction that this one has not had (of
-- two clusters with one identifier, which are copies of one directory, the other one may). Index: invalidation_xid.
SELECT pgcache.unchanged_between($1, $2, $3)
   AND pg_snapshot_xmax($2::pg_snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
   AND (pg_control_system()).system_identifier = $4
   AND ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int = $5
