-- Releases the leases of the keys $1 that these holders ($2) have, for answers that this transaction stores.
-- Index: lease_pkey.
UPDATE pgcache.lease AS l
   SET released = pg_current_xact_id()
 WHERE l.place = ANY (ARRAY(SELECT pgcache.lease_place(k.key) FROM pg_catalog.unnest($1) AS k (key)))
   AND (l.key, l.holder) IN (SELECT k.key, k.holder FROM unnest($1, $2) AS k (key, holder))
