-- What a replica has: whether it is one, its snapshot, and what tells this life of this server from others. The timeline
-- is the latest that its control file knows of. Needs no object of ours: those that are UNLOGGED cannot be read there.
SELECT pg_catalog.pg_is_in_recovery(),
       pg_catalog.pg_current_snapshot()::pg_catalog.text,
       extract(epoch FROM pg_catalog.pg_postmaster_start_time())::pg_catalog.text,
       (pg_catalog.pg_control_system()).system_identifier,
       greatest((pg_catalog.pg_control_checkpoint()).timeline_id,
                (pg_catalog.pg_control_recovery()).min_recovery_end_timeline)
