-- Nobody but the owner administrates; anybody who may use the schema may invalidate.
REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA /*schema*/ FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgcache.invalidate, pgcache.invalidate_scopes TO PUBLIC;
