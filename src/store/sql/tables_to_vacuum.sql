-- The tables that hold entries, with the most dead rows first: who is cut short leaves off where least is lost.
SELECT format('%I.%I', n.nspname, c.relname)
  FROM pgcache.entry_table t
  JOIN pg_class c ON c.oid = t.relation
  JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY pg_stat_get_dead_tuples(t.relation) + pg_stat_get_dead_tuples(t.toast) DESC
