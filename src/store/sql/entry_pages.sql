SELECT pg_relation_size('pgcache.entry') / current_setting('block_size')::bigint
