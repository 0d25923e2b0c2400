-- As delete_keys.sql, where `entry` is partitioned: that the keys are said twice tells the planner which partitions they are in.
DELETE FROM pgcache.entry
 WHERE key = ANY ($1)
   AND key = ANY (ARRAY(SELECT e.key FROM pgcache.entry e WHERE e.key = ANY ($1) FOR UPDATE SKIP LOCKED))
