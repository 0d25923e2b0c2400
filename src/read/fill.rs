//! Fills: asking the inner service, and storing, freshening, completing or replacing what is stored with what it
//! answers.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    AGE, AUTHORIZATION, CONTENT_LENGTH, DATE, ETAG, IF_MODIFIED_SINCE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, response};
use http_body::Body;
use tower_service::Service;

use crate::answer::{Outcome, add_client_cache};
use crate::body::{Limits, ResponseBody, Teed, collected, tee};
use crate::call::{Answered, Caching, Call, group_scopes};
use crate::engine::{Asked, Entry, Fill, Label, StoredHead};
use crate::error::BoxError;
use crate::http::cache_status::{Bypass, CacheStatus, Forward};
use crate::http::conditional::{freshen, is_about, revalidation, take_conditionals};
use crate::http::fields::stored_fields;
use crate::http::partial::{self, combined};
use crate::http::reuse::may_stand_in;
use crate::http::storable::{Freshness, NotStored, directives, judge};
use crate::http::structured::{are_too_long, groups};
use crate::http::vary::{Vary, vary_of};
use crate::nesting::Learned;
use crate::plan::{Read, Subject};
use crate::policy::{GeneratedEtag, MAX_DEPENDENCIES};
use crate::runtime::Remarks;

use super::{part_key, variant_key};

/// How many probes an answer may take over; a scope has up to five. Those of one that is confirmed again and again
/// may become more each time.
const MAX_PROBES: usize = 5 * (MAX_DEPENDENCIES + 2);

/// How many lines the head of a stored answer may have. What can be held is six times as much, and a few are added.
const MAX_LINES: usize = 4_096;

const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");

/// How a fill is asked for: what is known before the inner service is called.
pub(crate) struct Errand {
    pub(super) read: Read,
    subject: Subject,
    /// What is stored, and may be revalidated or stand in for an error.
    pub(super) stored: Option<Arc<Entry>>,
    /// Preconditions and ranges that the cache answers, taken out of the request.
    pub(super) conditionals: Option<HeaderMap>,
    pub(super) answers_conditionals: bool,
    /// Whether the request carries the stored validators.
    pub(super) revalidates: bool,
    /// The request's fields, for answers that vary.
    fields: HeaderMap,
    why: Forward,
    no_store: bool,
    /// An answer to POST counts as fresh only if it says so itself.
    explicit_only: bool,
    /// Whether what the handler reads from can tell what it has, once it was asked.
    knows_its_source: Option<bool>,
    /// A stored beginning; the request asks for the rest.
    pub(super) completes: Option<Arc<Entry>>,
}

impl Caching {
    /// Where the answer to a POST begins that may be one for later GETs.
    pub(crate) async fn begin_later(
        &self,
        read: Read,
        subject: Subject,
        headers: &HeaderMap,
    ) -> Option<(Errand, Fill)> {
        // what it was made from is not known where the handler may have read from a replica
        if read.policy.snapshot_from.is_some() {
            return None;
        }
        let Asked::Known(fill) = self.look_up(&read, headers).await else {
            return None;
        };
        let errand = Errand {
            read,
            subject,
            stored: None,
            conditionals: None,
            revalidates: false,
            fields: headers.clone(),
            why: Forward::Method,
            answers_conditionals: false,
            completes: None,
            no_store: false,
            explicit_only: true,
            knows_its_source: None,
        };
        Some((errand, fill))
    }
}

impl<S> Call<S> {
    /// The answer to a POST, stored for later GETs. The POST's own invalidation (`xid`) was made for older ones.
    pub(crate) async fn store_later<B>(
        self,
        (errand, fill): (Errand, Fill),
        xid: u64,
        response: Response<B>,
        remarks: Remarks,
    ) -> Response<ResponseBody<B>>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = response.into_parts();
        self.cache.cache.engine.count_bypass();
        self.store(errand, fill.seeing(xid), head, body, remarks)
            .await
    }

    /// The rest of an answer whose beginning is stored: both are stored as one, and answer the client.
    fn complete<B>(
        &self,
        mut errand: Errand,
        part: &Entry,
        fill: Fill,
        mut head: response::Parts,
        rest: &Bytes,
        remarks: Remarks,
    ) -> Response<ResponseBody<B>> {
        let received = SystemTime::now();
        let why = errand.why;
        let Some((headers, body)) = combined((&part.headers, &part.body), (&head.headers, rest))
        else {
            return self.misfit(why, head.status);
        };
        (head.status, head.headers) = (StatusCode::OK, headers);
        let status = head.status;
        let said = match self.storable(&mut errand, &head, remarks, received, None) {
            Ok((freshness, mut label)) => {
                // what the beginning depended on, the whole does
                label.probes.extend(part.probes.iter().copied());
                let headers = stored_fields(&head.headers, received);
                let stored = StoredHead {
                    status,
                    headers,
                    etag: GeneratedEtag::Off,
                };
                fill.begin(label, freshness, stored).finish(body.clone());
                CacheStatus::Stored { why, status }
            }
            Err(reason) => CacheStatus::NotStored {
                why,
                status,
                reason,
            },
        };
        let outcome = Outcome {
            status,
            headers: head.headers,
            body,
            age: None,
        };
        self.cache
            .explained(errand.read.whole(outcome).answer(None), said)
    }

    /// The inner service has sent a part that does not fit the one that it sent before under the same validator.
    fn misfit<B>(&self, why: Forward, status: StatusCode) -> Response<ResponseBody<B>> {
        tracing::warn!("a part does not fit the stored one with the same strong validator");
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        self.cache.explained(
            response,
            CacheStatus::NotStored {
                why,
                status,
                reason: NotStored::Status,
            },
        )
    }

    /// Asks the inner service, stores or freshens, and answers.
    pub(super) async fn fill<RequestBody, B>(
        mut self,
        mut errand: Errand,
        request: Request<RequestBody>,
        mut fill: Fill,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        errand.look_at_source(&mut fill).await;
        let conditionals = errand
            .answers_conditionals
            .then(|| errand.conditionals.clone().unwrap_or_default());
        let Answered {
            response,
            mut remarks,
            guard,
            mark,
        } = match self
            .ask_inner(
                request,
                Vec::new(),
                Some(Learned::Known(fill)),
                conditionals,
            )
            .await
        {
            Ok(answered) => answered,
            Err((error, mark)) => {
                drop(answered(mark.take_back()));
                return match errand.stand_in().filter(|_| !mark.is_claimed()) {
                    Some(entry) => Ok(self.stale(entry, &errand, None)),
                    None => Err(error),
                };
            }
        };
        let fill = answered(mark.take_back());
        if mark.is_claimed() {
            guard.disarm();
            return Ok(response.map(ResponseBody::passed));
        }
        guard.commit(std::mem::take(&mut remarks.invalidates)).await;
        let Some(fill) = fill else {
            return Ok(self.passed(response.map(ResponseBody::passed), Bypass::Store));
        };
        self.cache.cache.engine.count_miss();
        let (head, body) = response.into_parts();
        if let Some(part) = errand
            .completes
            .take_if(|_| head.status == StatusCode::PARTIAL_CONTENT)
        {
            let room = errand
                .read
                .policy
                .body_limit()
                .saturating_sub(part.body.len());
            return Ok(match collected(body, room).await {
                Some(rest) => self.complete(errand, &part, fill, head, &rest, remarks),
                None => self.misfit(errand.why, head.status),
            });
        }
        let is_confirmed = |entry: &mut Arc<Entry>| match head.status {
            StatusCode::NOT_MODIFIED => errand.revalidates,
            status => {
                errand.read.head_only
                    && status == entry.status
                    && is_confirmed_by_head(&head, entry)
            }
        };
        if let Some(entry) = errand.stored.take_if(is_confirmed) {
            return Ok(self.not_modified(errand, &entry, fill, &head, remarks));
        }
        match errand.stand_in().filter(|_| is_error(head.status)) {
            Some(entry) => Ok(self.stale(entry, &errand, Some(head.status))),
            None => Ok(self.store(errand, fill, head, body, remarks).await),
        }
    }

    /// The inner service says that the stored answer is the current one: it answers the client, and is freshened if
    /// the 304 is about it (RFC 9111 §4.3.4).
    fn not_modified<B>(
        &self,
        mut errand: Errand,
        entry: &Entry,
        fill: Fill,
        head: &response::Parts,
        remarks: Remarks,
    ) -> Response<ResponseBody<B>> {
        let received = SystemTime::now();
        if !is_about_entry(head, entry) {
            return self.stale(entry, &errand, Some(head.status));
        }
        let mut headers = entry.headers.clone();
        freshen(&mut headers, &head.headers);
        let mut judged = response::Response::new(()).into_parts().0;
        judged.status = entry.status;
        judged.headers = headers;
        judged
            .headers
            .extend(head.headers.get(AGE).map(|age| (AGE, age.clone())));
        if !head.headers.contains_key(DATE) {
            judged.headers.remove(DATE);
        }
        let verdict = self.storable(&mut errand, &judged, remarks, received, Some(entry));
        let entry = entry.with_headers(stored_fields(&judged.headers, received));
        let response = errand
            .read
            .whole((&entry).into())
            .fresh()
            .answer(errand.conditionals.as_ref());
        let status = head.status;
        match verdict {
            Ok((freshness, label)) => {
                fill.freshen(&entry, label, freshness);
                self.cache.explained(
                    response,
                    CacheStatus::Stored {
                        why: errand.why,
                        status,
                    },
                )
            }
            Err(reason) => self.cache.explained(
                response,
                CacheStatus::NotStored {
                    why: errand.why,
                    status,
                    reason,
                },
            ),
        }
    }

    /// A stored answer in the place of an error, or of no answer at all.
    pub(super) fn stale<B>(
        &self,
        entry: &Entry,
        errand: &Errand,
        status: Option<StatusCode>,
    ) -> Response<ResponseBody<B>> {
        let response = errand
            .read
            .whole(entry.into())
            .answer(errand.conditionals.as_ref());
        let why = errand.why;
        self.cache
            .explained(response, CacheStatus::StandIn { why, status })
    }

    /// A new answer, which is stored if it may be.
    async fn store<B>(
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
                    headers: head.headers,
                    body,
                    age: None,
                };
                let mut response = errand
                    .read
                    .whole(outcome)
                    .answer(errand.conditionals.as_ref());
                response.extensions_mut().extend(head.extensions);
                response
            }
            Teed::Streaming(body) => {
                add_client_cache(&mut head.headers, errand.read.client_cache().as_ref());
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
    fn storable(
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
                    || are_too_long(&groups),
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

impl Errand {
    /// Right before the handler runs. Whether its answer can be stored, as far as that is known by then.
    pub(super) async fn look_at_source(&mut self, fill: &mut Fill) -> bool {
        if let (Some(replica), None) = (&self.read.policy.snapshot_from, self.knows_its_source) {
            self.knows_its_source = Some(fill.look_at(replica).await);
        }
        self.knows_its_source != Some(false)
    }

    /// The stored answer, if it may stand in for an error.
    pub(super) fn stand_in(&self) -> Option<&Entry> {
        let entry = self.stored.as_deref()?;
        let says = directives(&entry.headers, self.read.policy.targets());
        may_stand_in(entry.condition, &says, self.read.policy.stale).then_some(entry)
    }
}

/// The inner service has answered; whoever waits for this fill gets it, or is sent on.
fn answered(fill: Option<Fill>) -> Option<Fill> {
    fill.map(|mut fill| {
        fill.has_answer();
        fill
    })
}

/// Whether the answer to a HEAD says that a GET would get what is stored (RFC 9111 §4.3.5). What a commit has
/// invalidated is confirmed by an entity-tag alone: a date cannot tell two changes within a second.
fn is_confirmed_by_head(head: &response::Parts, entry: &Entry) -> bool {
    let has_tags =
        head.headers.contains_key(ETAG) && entry.headers.contains_key(ETAG) && !entry.etag_is_ours;
    let has_dates = head.headers.contains_key(LAST_MODIFIED) && entry.condition.valid;
    let same_length =
        content_length(&head.headers).is_none_or(|length| length == entry.body.len() as u64);
    (has_tags || has_dates) && same_length && is_about_entry(head, entry)
}

/// Whether a 304 is about this entry; its handler does not know a validator that the cache made.
fn is_about_entry(head: &response::Parts, entry: &Entry) -> bool {
    if !entry.etag_is_ours {
        return is_about(&head.headers, &entry.headers);
    }
    let mut known_to_the_handler = entry.headers.clone();
    known_to_the_handler.remove(ETAG);
    is_about(&head.headers, &known_to_the_handler)
}

/// What the inner service is asked about a stored answer. Of one that a commit has invalidated a date says too
/// little: within the second that it names there may have been a change after the answer (RFC 9110 §8.8.2.2), and
/// only the handler's clock could tell.
fn validators(entry: &Entry) -> Option<HeaderMap> {
    let mut validators = revalidation(&entry.headers, entry.etag_is_ours)?;
    if !entry.condition.valid {
        validators.remove(IF_MODIFIED_SINCE);
    }
    (!validators.is_empty()).then_some(validators)
}

/// Takes out of the request what the cache answers itself, and puts in what revalidates.
pub(super) fn prepare<RequestBody>(
    read: Read,
    subject: Subject,
    mut request: Request<RequestBody>,
    stored: Option<Arc<Entry>>,
    why: Forward,
    no_store: bool,
) -> (Errand, Request<RequestBody>) {
    let fields = request.headers().clone();
    let validators = stored
        .as_deref()
        .filter(|_| !read.is_search)
        .and_then(validators);
    let is_ours = validators.is_some() || !(read.is_search || read.policy.forwards_conditionals());
    let conditionals = if is_ours {
        take_conditionals(request.headers_mut())
    } else {
        None
    };
    let revalidates = validators.is_some();
    request
        .headers_mut()
        .extend(validators.into_iter().flatten());
    (
        Errand {
            read,
            subject,
            stored,
            conditionals,
            answers_conditionals: is_ours,
            revalidates,
            fields,
            why,
            no_store,
            explicit_only: false,
            knows_its_source: None,
            completes: None,
        },
        request,
    )
}

/// RFC 5861 §4.
pub(super) fn is_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// `None` also for a value that says nothing clear: the body is then as long as it turns out to be.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
