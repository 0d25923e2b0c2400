//! What the client gets of an answer whose body is there: all of it, its head, a part of it, or the news that
//! it has it already.

use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::body::ResponseBody;
use crate::engine::Entry;
use crate::http::conditional::{Verdict, evaluate, for_not_modified};
use crate::http::fields::{has_content, number};
use crate::http::range::{self, Ranged};
use crate::policy::ClientCache;

/// An answer that is complete.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Of a stored answer.
    pub(crate) age: Option<Duration>,
}

/// An answer that is complete, and what it is for.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) outcome: Outcome,
    pub(crate) head_only: bool,
    /// What other caches are told, if the answer belongs to somebody.
    pub(crate) client_cache: Option<ClientCache>,
}

impl From<&Entry> for Outcome {
    fn from(entry: &Entry) -> Self {
        Self {
            status: entry.status,
            headers: entry.headers.clone(),
            body: entry.body.clone(),
            age: Some(entry.condition.age),
        }
    }
}

/// Without a copy, if nobody else has it.
impl From<Entry> for Outcome {
    fn from(mut entry: Entry) -> Self {
        match Arc::get_mut(&mut entry.answer) {
            Some(own) => Self {
                status: own.status,
                headers: take(&mut own.headers),
                body: take(&mut own.body),
                age: Some(entry.condition.age),
            },
            None => (&entry).into(),
        }
    }
}

impl From<Arc<Entry>> for Outcome {
    fn from(entry: Arc<Entry>) -> Self {
        match Arc::try_unwrap(entry) {
            Ok(entry) => entry.into(),
            Err(shared) => (&*shared).into(),
        }
    }
}

impl Whole {
    /// It was confirmed just now.
    pub(crate) fn fresh(mut self) -> Self {
        self.outcome.age = None;
        self
    }

    /// The answer to a request with these preconditions and ranges (RFC 9110 §13.2.2: these are looked at when
    /// the answer without them is known).
    pub(crate) fn answer<B>(self, conditionals: Option<&HeaderMap>) -> Response<ResponseBody<B>> {
        let Self {
            outcome,
            head_only,
            client_cache,
        } = self;
        let Outcome {
            status,
            mut headers,
            body,
            age,
        } = outcome;
        headers.extend(age.map(|age| (AGE, number(age.as_secs()))));
        add_client_cache(&mut headers, client_cache.as_ref());
        let (status, mut headers, body) = match conditionals {
            Some(conditionals) => conditional(conditionals, status, headers, body, head_only),
            None => (status, headers, body),
        };
        if has_content(status) && !headers.contains_key(CONTENT_LENGTH) {
            headers.insert(CONTENT_LENGTH, number(body.len() as u64));
        }
        let mut response = Response::new(if status == StatusCode::NOT_MODIFIED {
            ResponseBody::none()
        } else if head_only {
            ResponseBody::empty()
        } else {
            ResponseBody::whole(body)
        });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

fn conditional(
    conditionals: &HeaderMap,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    head_only: bool,
) -> (StatusCode, HeaderMap, Bytes) {
    match evaluate(conditionals, &headers, status) {
        Verdict::NotModified => (
            StatusCode::NOT_MODIFIED,
            for_not_modified(&headers),
            Bytes::new(),
        ),
        Verdict::PreconditionFailed => {
            let mut headers = for_not_modified(&headers);
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            (StatusCode::PRECONDITION_FAILED, headers, Bytes::new())
        }
        // RFC 9110 §14.2: Range is for GET alone
        Verdict::Proceed if head_only || status != StatusCode::OK => (status, headers, body),
        Verdict::Proceed => match range::apply(conditionals, &headers, &body) {
            Ranged::Whole => (status, headers, body),
            Ranged::Partial { headers, body } => (StatusCode::PARTIAL_CONTENT, headers, body),
            Ranged::Unsatisfiable { headers } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, headers, Bytes::new())
            }
        },
    }
}

/// Tells browsers and other caches what they may do with an answer that belongs to somebody and says nothing
/// itself.
pub(crate) fn add_client_cache(headers: &mut HeaderMap, setting: Option<&ClientCache>) {
    let value = match setting {
        None | Some(ClientCache::Unchanged) => return,
        Some(ClientCache::Revalidate) => HeaderValue::from_static("private, no-cache"),
        Some(ClientCache::Field(value)) => value.clone(),
    };
    headers.entry(CACHE_CONTROL).or_insert(value);
}
