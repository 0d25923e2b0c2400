-- Releases the leases of the keys $1 that these holders ($2) have, for answers that this transaction stores; locks them in one
-- order, since a row that a claim has changed meanwhile is waited for whoever holds it now.
-- Index: lease_pkey.
WITH held AS MATERIALIZED (
    SELECT l.place
      FROM pgcache.lease l
     WHERE l.place = ANY (ARRAY(SELECT pgcache.lease_place(k.key) FROM pg_catalog.unnest($1) AS k (key)))
       AND (l.key, l.holder) IN (SELECT k.key, k.holder FROM unnest($1, $2) AS k (key, holder))
     ORDER BY l.place
       FOR UPDATE OF l
)
UPDATE pgcache.lease AS l
   SET released = pg_current_xact_id()
 WHERE l.place = ANY (ARRAY(SELECT h.place FROM held h))
