//! A new answer of the inner service: whether it may be stored, under what, and storing it while it is passed on.

use std::time::SystemTime;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, ETAG};
use http::{HeaderMap, HeaderName, Response, StatusCode, response};
use http_body::Body;

use crate::answer::{Fields, Outcome};
use crate::body::{Limits, ResponseBody, Teed, tee};
use crate::call::{Call, group_scopes};
use crate::engine::{Entry, Fill, Label, StoredHead};
use crate::error::BoxError;
use crate::http::cache_status::CacheStatus;
use crate::http::fields::stored_fields;
use crate::http::partial;
use crate::http::storable::{Freshness, NotStored, judge};
use crate::http::stored_head::Added;
use crate::http::structured::{groups, is_too_long};
use crate::http::vary::{Vary, vary_of};
use crate::plan::Subject;
use crate::policy::MAX_DEPENDENCIES;
use crate::runtime::Remarks;

use super::errand::Errand;
use super::{part_key, variant_key};

/// How many probes an answer may take over; a scope has up to five. Those of one that is confirmed again and again
/// may become more each time.
const MAX_PROBES: usize = 5 * (MAX_DEPENDENCIES + 2);

/// How many lines the head of a stored answer may have. What can be held is six times as much, and a few are added.
const MAX_LINES: usize = 4_096;

const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");

impl<S> Call<S> {
    /// A new answer, which is stored if it may be.
    pub(super) async fn store<B>(
        self,
        mut errand: Errand,
        fill: Fill,
        mut head: response::Parts,
        body: B,
        remarks: Remarks,
    ) -> Response<ResponseBody<B>>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (status, why) = (head.status, errand.why);
        let received = SystemTime::now();
        let (freshness, label) = match self.storable(&mut errand, &head, remarks, received, None) {
            Ok(storable) => storable,
            Err(reason) => {
                self.cache
                    .rules
                    .explain_not_stored(self.route.as_deref(), reason);
                let response = Response::from_parts(head, ResponseBody::passed(body));
                return self.cache.explained(
                    response,
                    CacheStatus::NotStored {
                        why,
                        status,
                        reason,
                    },
                );
            }
        };
        let policy = errand.read.policy.clone();
        let stored_head = StoredHead {
            status,
            headers: stored_fields(&head.headers, received),
            etag: policy.etag.unwrap_or_default(),
        };
        let limits = Limits {
            max: policy.body_limit(),
            announced: match status {
                StatusCode::PARTIAL_CONTENT => partial::announced_length(&head.headers),
                _ => content_length(&head.headers),
            },
        };
        let storing = fill.begin(label, freshness, stored_head);
        let response = match tee(body, storing, limits, errand.stand_in().is_some()).await {
            Teed::Whole(body, etag) => {
                head.headers.extend(etag.map(|etag| (ETAG, etag)));
                let outcome = Outcome {
                    status,
                    fields: Fields::Given(head.headers),
                    body,
                    age: None,
                };
                // what is said of the cache is added below
                let whole = errand.read.whole(outcome);
                let mut response = whole.answer(errand.conditionals.as_ref(), None);
                response.extensions_mut().extend(head.extensions);
                response
            }
            Teed::Streaming(body) => {
                let added = Added {
                    cache_control: errand.read.client_cache(),
                    ..Added::default()
                };
                added.append_to(&mut head.headers);
                Response::from_parts(head, body)
            }
            Teed::Broken(error) => match errand.stand_in() {
                Some(entry) => return self.stale(entry, &errand, Some(status)),
                None => Response::from_parts(head, ResponseBody::broken(error)),
            },
        };
        self.cache
            .explained(response, CacheStatus::Stored { why, status })
    }

    /// Whether the answer may be stored, and under which scopes.
    pub(super) fn storable(
        &self,
        errand: &mut Errand,
        head: &response::Parts,
        remarks: Remarks,
        received: SystemTime,
        confirmed: Option<&Entry>,
    ) -> Result<(Freshness, Label), NotStored> {
        let Errand { read, subject, .. } = errand;
        if remarks.no_store || remarks.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(NotStored::NoStore);
        }
        if errand.no_store {
            return Err(NotStored::Request);
        }
        if errand.knows_its_source == Some(false) {
            return Err(NotStored::Replica);
        }
        let has_authorization = errand.fields.contains_key(AUTHORIZATION);
        let mut rules = read.policy.store_rules(remarks.ttl, has_authorization);
        if errand.explicit_only {
            (rules.heuristics, rules.lifetimes.route) = (false, None);
        }
        let freshness = judge(head, &rules, received)?;
        let Subject {
            mut scopes,
            authority,
            path,
            tenant,
        } = subject.clone();
        let own_scopes = 1 + usize::from(tenant.is_some());
        let groups = groups(&head.headers, &CACHE_GROUPS);
        let as_domains = read.policy.groups_as_domains == Some(true);
        let named = remarks
            .depends_on
            .into_iter()
            .chain(group_scopes(&groups, &authority, as_domains));
        scopes.extend(named.map(|scope| scope.for_tenant(tenant.as_deref())));
        scopes.sort();
        scopes.dedup();
        // the body was made from what the handler may not have read again
        let probes = confirmed.map_or_else(Vec::new, |entry| entry.probes.clone());
        let too_large = content_length(&head.headers)
            .is_some_and(|length| length > read.policy.body_limit() as u64);
        let refusals = [
            (read.head_only && confirmed.is_none(), NotStored::Head),
            (too_large && !read.head_only, NotStored::TooLarge),
            (head.headers.len() > MAX_LINES, NotStored::TooLarge),
            (
                scopes.len() > MAX_DEPENDENCIES + own_scopes
                    || probes.len() > MAX_PROBES
                    || groups.iter().any(|group| is_too_long(group)),
                NotStored::TooManyDependencies,
            ),
            (
                !self.cache.may_store(self.head.as_ref(), head),
                NotStored::Condition,
            ),
        ];
        if let Some((_, reason)) = refusals.into_iter().find(|(applies, _)| *applies) {
            return Err(reason);
        }
        let variant = match vary_of(&head.headers) {
            Vary::Fields(fields) => {
                let key = variant_key(read.key, &fields, &errand.fields);
                Some((fields, key))
            }
            Vary::Nothing | Vary::Everything => None,
        };
        Ok((
            freshness,
            Label {
                scopes,
                probes,
                authority,
                path,
                route: self.route.clone(),
                tenant,
                variant,
                part: (head.status == StatusCode::PARTIAL_CONTENT).then(|| part_key(read.key)),
            },
        ))
    }
}

/// `None` also for a value that says nothing clear: the body is then as long as it turns out to be.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
