-- Whoever's statement takes effect does the housekeeping; the others find the task not due.
-- $1: task, $2: seconds until it is due again.
INSERT INTO pgcache.housekeeping AS h (task, due)
VALUES ($1, clock_timestamp() + make_interval(secs => $2))
    ON CONFLICT (task) DO UPDATE SET due = EXCLUDED.due WHERE h.due <= clock_timestamp()
