//! Fills: asking the inner service, and storing, freshening, completing or replacing what is stored with what it
//! answers.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{AGE, DATE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, Request, Response, StatusCode, response};
use http_body::Body;
use tower_service::Service;

use crate::answer::{Fields, Outcome};
use crate::body::{ResponseBody, collected};
use crate::call::{Answered, Caching, Call};
use crate::engine::{Asked, Entry, Fill, Label, StoredHead};
use crate::error::BoxError;
use crate::http::cache_status::{Bypass, CacheStatus, Forward};
use crate::http::conditional::{freshen, is_about};
use crate::http::fields::stored_fields;
use crate::http::partial::combined;
use crate::http::storable::NotStored;
use crate::nesting::Learned;
use crate::plan::{Read, Subject};
use crate::policy::GeneratedEtag;
use crate::runtime::Remarks;

use super::errand::{Beginning, Errand};
use super::storing::content_length;

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
            asked_at: fill.asked_at(),
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
        Some((errand, *fill))
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
        self.store(errand, fill.after(xid), head, body, remarks)
            .await
    }

    /// The rest of an answer whose beginning is stored: both are stored as one, and answer the client.
    fn complete<B>(
        &self,
        mut errand: Errand,
        Beginning { part, room, .. }: Beginning,
        fill: Fill,
        mut head: response::Parts,
        rest: Option<Bytes>,
        remarks: Remarks,
    ) -> Response<ResponseBody<B>> {
        let received = SystemTime::now();
        let why = errand.why;
        let combined = rest
            .and_then(|rest| combined((&part.head.fields(), &part.body), (&head.headers, &rest)));
        let Some((headers, body)) = combined else {
            return self.misfit(&errand, &part, fill, head.status);
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
                fill.begin(label, freshness, stored)
                    .finish(body.clone(), room);
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
            fields: Fields::Given(head.headers),
            body,
            age: None,
        };
        let said = self.cache.said(said);
        errand.read.whole(outcome).answer(None, said)
    }

    /// The inner service has sent a part that does not fit the stored one, which is not to spoil the next answer, too.
    fn misfit<B>(
        &self,
        errand: &Errand,
        part: &Entry,
        fill: Fill,
        status: StatusCode,
    ) -> Response<ResponseBody<B>> {
        tracing::warn!("what was sent does not complete the stored beginning, which is given up");
        let Errand { subject, why, .. } = errand;
        let label = Label {
            scopes: subject.scopes.clone(),
            probes: part.probes.clone(),
            authority: subject.authority.clone(),
            path: subject.path.clone(),
            route: self.route.clone(),
            tenant: subject.tenant.clone(),
            variant: None,
            part: Some(part.key),
        };
        fill.discard(part, label);
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        self.cache.explained(
            response,
            CacheStatus::NotStored {
                why: *why,
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
        // a 416 is an answer to the range that was put in, too
        let is_about_rest = matches!(
            head.status,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
        );
        if let Some(beginning) = errand.completes.take().filter(|_| is_about_rest) {
            let rest = collected(body, beginning.missing).await;
            return Ok(self.complete(errand, beginning, fill, head, rest, remarks));
        }
        let is_confirmed = |entry: &mut Arc<Entry>| match head.status {
            StatusCode::NOT_MODIFIED => errand.revalidates,
            status => {
                errand.read.head_only
                    && status == entry.head.status
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
            let entry = entry.later(errand.asked_at.elapsed());
            return self.stale(entry, &errand, Some(head.status));
        }
        let mut headers = entry.head.fields();
        freshen(&mut headers, &head.headers);
        let mut judged = response::Response::new(()).into_parts().0;
        judged.status = entry.head.status;
        judged.headers = headers;
        judged
            .headers
            .extend(head.headers.get(AGE).map(|age| (AGE, age.clone())));
        if !head.headers.contains_key(DATE) {
            judged.headers.remove(DATE);
        }
        let verdict = self.storable(&mut errand, &judged, remarks, received, Some(entry));
        let entry = entry.with_headers(stored_fields(&judged.headers, received));
        let whole = errand.read.whole((&entry).into()).fresh();
        let (why, status) = (errand.why, head.status);
        let said = match verdict {
            Ok((freshness, label)) => {
                fill.freshen(&entry, label, freshness);
                CacheStatus::Stored { why, status }
            }
            Err(reason) => CacheStatus::NotStored {
                why,
                status,
                reason,
            },
        };
        whole.answer(errand.conditionals.as_ref(), self.cache.said(said))
    }

    /// A stored answer in the place of an error, or of no answer at all.
    pub(super) fn stale<B>(
        &self,
        entry: Entry,
        errand: &Errand,
        status: Option<StatusCode>,
    ) -> Response<ResponseBody<B>> {
        let why = errand.why;
        let said = self.cache.said(CacheStatus::StandIn { why, status });
        let whole = errand.read.whole(entry.into());
        whole.answer(errand.conditionals.as_ref(), said)
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
        head.headers.contains_key(ETAG) && entry.head.contains(&ETAG) && !entry.head.etag_is_ours;
    let has_dates = head.headers.contains_key(LAST_MODIFIED) && entry.condition.valid;
    let same_length =
        content_length(&head.headers).is_none_or(|length| length == entry.body.len() as u64);
    (has_tags || has_dates) && same_length && is_about_entry(head, entry)
}

/// Whether a 304 is about this entry; its handler does not know a validator that the cache made.
fn is_about_entry(head: &response::Parts, entry: &Entry) -> bool {
    let mut known_to_the_handler = entry.head.fields();
    if entry.head.etag_is_ours {
        known_to_the_handler.remove(ETAG);
    }
    is_about(&head.headers, &known_to_the_handler)
}

/// RFC 5861 §4.
pub(super) fn is_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}
