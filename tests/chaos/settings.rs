//! Settings of the server that somebody has made for other reasons.

use std::time::Duration;

use crate::harness::{Settings, Stage, case};

const A_WHILE: Duration = Duration::from_millis(300);

/// The cache works with them as without.
const HOSTILE: [(&str, &str); 41] = [
    ("TimeZone", "Asia/Kathmandu"),
    ("DateStyle", "German"),
    ("IntervalStyle", "sql_standard"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("standard_conforming_strings", "off"),
    ("escape_string_warning", "off"),
    ("backslash_quote", "off"),
    ("quote_all_identifiers", "on"),
    ("search_path", "hostile, pg_temp"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("check_function_bodies", "off"),
    ("row_security", "off"),
    ("synchronous_commit", "off"),
    ("client_min_messages", "debug5"),
    ("plan_cache_mode", "force_generic_plan"),
    ("parallel_setup_cost", "0"),
    ("enable_seqscan", "off"),
    ("enable_indexscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_nestloop", "off"),
    ("enable_hashjoin", "off"),
    ("enable_material", "off"),
    ("enable_sort", "off"),
    ("from_collapse_limit", "1"),
    ("join_collapse_limit", "1"),
    ("geqo_threshold", "2"),
    ("work_mem", "64kB"),
    ("cursor_tuple_fraction", "0"),
    ("xmlbinary", "hex"),
    ("lc_numeric", "C"),
    ("gin_pending_list_limit", "64"),
    ("statement_timeout", "2s"),
    ("lock_timeout", "1s"),
    ("idle_session_timeout", "100ms"),
    ("idle_in_transaction_session_timeout", "1s"),
    ("vacuum_cost_delay", "1"),
    ("jit", "on"),
];

/// With them the cache is of little use or of none.
const PROHIBITIVE: [(&str, &str); 6] = [
    ("default_transaction_read_only", "on"),
    ("statement_timeout", "1ms"),
    ("lock_timeout", "1ms"),
    ("idle_session_timeout", "1ms"),
    ("idle_in_transaction_session_timeout", "1ms"),
    ("jit_above_cost", "0"),
];

impl Stage {
    /// Those that this version has.
    async fn known<'a>(&self, settings: &'a [(&'a str, &'a str)]) -> Vec<&'a (&'a str, &'a str)> {
        let admin = self.admin().await;
        let mut known = Vec::new();
        for setting in settings {
            let is_known = "SELECT FROM pg_settings WHERE lower(name) = lower($1)";
            if !admin
                .query(is_known, &[&setting.0])
                .await
                .unwrap()
                .is_empty()
            {
                known.push(setting);
            }
        }
        known
    }

    async fn set_for(&self, whom: &str, settings: &[(&str, &str)]) {
        for (name, value) in self.known(settings).await {
            // a list of names is not one name
            let value = match *name {
                "search_path" => (*value).to_owned(),
                _ => format!("'{value}'"),
            };
            self.sql(&format!("ALTER {whom} SET {name} = {value}"))
                .await;
        }
    }

    /// What is in the way of a careless search path.
    async fn plant_impostors(&self) {
        self.sql(
            "CREATE SCHEMA hostile; GRANT USAGE ON SCHEMA hostile TO PUBLIC;
             CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'infinity'::timestamptz $$;
             CREATE FUNCTION hostile.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT 'wrong' $$;
             CREATE TABLE hostile.entry (key int); CREATE TABLE hostile.epoch (id int)",
        )
        .await;
    }
}

/// Everything that is disabled makes plans slow, too; what is at stake is whether it works.
fn patient(settings: Settings) -> Settings {
    Settings {
        lookup_deadline: 1000,
        ..settings
    }
}

#[test]
fn of_the_database() {
    case(async {
        let mut stage = Stage::new().await;
        stage.plant_impostors().await;
        // the writers are none of the cache's: their statements need not be compiled for seconds
        stage.sql("ALTER ROLE postgres SET jit = off").await;
        let name = stage.name();
        stage.set_for(&format!("DATABASE {name}"), &HOSTILE).await;
        stage.serve(&patient(stage.settings())).await;
        stage.suffer(A_WHILE).await;
        stage.end().await;
    });
}

#[test]
fn of_the_role() {
    case(async {
        let mut stage = Stage::new().await;
        stage.plant_impostors().await;
        stage.set_for("ROLE app", &HOSTILE).await;
        let settings = Settings {
            memory: 0,
            ..stage.settings()
        };
        stage.serve(&patient(settings)).await;
        stage.suffer(A_WHILE).await;
        stage.end().await;
    });
}

#[test]
fn of_the_connection_string() {
    case(async {
        let mut stage = Stage::new().await;
        stage.plant_impostors().await;
        let known = stage.known(&HOSTILE).await;
        let option =
            |(name, value): &&(&str, &str)| format!("-c {name}={}", value.replace(' ', ""));
        let options: Vec<String> = known.iter().map(option).collect();
        let mut settings = patient(stage.settings());
        settings.database = format!("{} options='{}'", settings.database, options.join(" "));
        stage.serve(&settings).await;
        stage.suffer(A_WHILE).await;
        stage.end().await;
    });
}

/// A setting that some make for their own queries. Without a nested loop some plans cannot be had: they count as so
/// expensive that the server would compile them, which takes seconds.
#[test]
fn no_nested_loops() {
    case(async {
        let mut stage = Stage::new().await;
        stage.sql("ALTER ROLE app SET enable_nestloop = off").await;
        stage.serve(&stage.settings()).await;
        stage.end().await;
    });
}

/// One after the other, under the load.
#[test]
fn that_come_and_go() {
    const ANEW: &str =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        for (name, value) in stage.known(&PROHIBITIVE).await {
            stage
                .sql(&format!("ALTER ROLE app SET {name} = '{value}'; {ANEW}"))
                .await;
            stage.suffer(Duration::from_millis(300)).await;
            stage
                .sql(&format!("ALTER ROLE app RESET {name}; {ANEW}"))
                .await;
            stage.recover().await;
        }
        stage.end().await;
    });
}
