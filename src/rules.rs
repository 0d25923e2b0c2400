//! [`Rules`]: the settings that meet in one layer, and what there is to say about them: mistakes, rows that never
//! matched, and why answers are not stored.

use std::collections::HashSet;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::Request;

use crate::cache::Config;
use crate::head::RequestHead;
use crate::http::cache_status::Bypass;
use crate::http::storable::NotStored;
use crate::plan::Routed;
use crate::policy::Policy;
use crate::request;
use crate::route::{MatchedPatterns, RouteTable};

/// How many different explanations a layer gives.
const MAX_EXPLANATIONS: usize = 256;

#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) config: Arc<Config>,
    policy: Arc<Policy>,
    mistakes: Vec<String>,
    place: &'static Location<'static>,
    table: Option<RouteTable>,
    patterns: MatchedPatterns,
    seen: AtomicBool,
    explained: Mutex<HashSet<(Option<String>, &'static str)>>,
}

impl Rules {
    pub(crate) fn new(
        config: Arc<Config>,
        own: Policy,
        table: Option<&RouteTable>,
        place: &'static Location<'static>,
    ) -> Self {
        let (policy, mistakes) = config.complete(own, &format!("layer at {place}"));
        let table = table.map(|table| table.under(&policy));
        Self {
            config,
            policy: Arc::new(policy),
            mistakes,
            place,
            table,
            patterns: MatchedPatterns::default(),
            seen: AtomicBool::new(false),
            explained: Mutex::default(),
        }
    }

    pub(crate) fn mistakes(&self) -> &[String] {
        &self.mistakes
    }

    /// A layer whose settings are wrong caches nothing.
    pub(crate) fn is_wrong(&self) -> bool {
        !self.mistakes.is_empty()
    }

    /// Finds the route of a request and hands both to `then`.
    pub(crate) fn route<B, T>(
        &self,
        request: &Request<B>,
        then: impl FnOnce(&Routed<'_>) -> T,
    ) -> T {
        self.note_first_request();
        let uri = request::original_uri(request);
        let row = self
            .table
            .as_ref()
            .and_then(|table| table.find(request.method(), uri.path()));
        let parameters = |name: &str| {
            let by_table = self
                .table
                .as_ref()
                .and_then(|table| table.parameter(uri.path(), name));
            by_table.or_else(|| {
                self.patterns
                    .parameter(request::matched_pattern(request)?, uri.path(), name)
            })
        };
        let head = RequestHead {
            method: request.method(),
            uri,
            headers: request.headers(),
            extensions: request.extensions(),
            parameters: &parameters,
        };
        then(&Routed {
            rules: self,
            policy: row.map_or(&self.policy, |row| &row.policy),
            row: row.map(|row| row.place.as_str()),
            head,
        })
    }

    fn note_first_request(&self) {
        if self.seen.load(Ordering::Relaxed) || self.seen.swap(true, Ordering::Relaxed) {
            return;
        }
        for mistake in &self.mistakes {
            tracing::error!("{mistake}. Nothing is cached here.");
        }
    }

    /// Says once per route why an answer was not stored.
    pub(crate) fn explain_not_stored(&self, route: Option<&str>, reason: NotStored) {
        if reason != NotStored::Head {
            self.explain(route, reason.as_str(), reason.mend());
        }
    }

    /// Says once per route why a request was passed through, where that may come as a surprise.
    pub(crate) fn explain_bypass(&self, route: Option<&str>, reason: Bypass) {
        if let Some(mend) = reason.mend() {
            self.explain(route, reason.as_str(), mend);
        }
    }

    fn explain(&self, route: Option<&str>, reason: &'static str, mend: &'static str) {
        let mut explained = self
            .explained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // the usual case allocates nothing but the name of the route
        let explanation = (route.map(str::to_owned), reason);
        if explained.len() < MAX_EXPLANATIONS && explained.insert(explanation) {
            let place = self.place;
            tracing::info!(route, layer = %place, reason, "an answer is not cached: {mend}");
        }
    }

    /// What never came to use.
    pub(crate) fn unused(&self) -> Unused<'_> {
        Unused {
            layer: (!self.seen.load(Ordering::Relaxed)).then_some(self.place),
            routes: self.table.iter().flat_map(RouteTable::unmatched).collect(),
        }
    }
}

/// Parts of a configuration that no request has met.
pub(crate) struct Unused<'a> {
    pub(crate) layer: Option<&'static Location<'static>>,
    pub(crate) routes: Vec<&'a str>,
}
