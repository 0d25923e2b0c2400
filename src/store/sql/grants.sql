-- What the role of an application needs where another one owns the schema.
GRANT USAGE ON SCHEMA /*schema*/ TO /*caller*/;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA /*schema*/ TO /*caller*/;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA /*schema*/ TO /*caller*/;
