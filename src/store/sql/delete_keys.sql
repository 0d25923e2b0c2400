-- Removes entries, without waiting for anybody who is at them. Index: entry_pkey.
DELETE FROM pgcache.entry
 WHERE key = ANY (ARRAY(SELECT e.key FROM pgcache.entry e WHERE e.key = ANY ($1) FOR UPDATE SKIP LOCKED))
