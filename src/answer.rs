//! What the client gets of an answer whose body is there: all of it, its head, a part of it, or the news that
//! it has it already.

use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::body::ResponseBody;
use crate::engine::{Answer, Entry};
use crate::http::conditional::{Verdict, evaluate, for_not_modified};
use crate::http::fields::{has_content, number};
use crate::http::range::{self, Ranged};
use crate::http::stored_head::Added;

/// An answer that is complete.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: StatusCode,
    pub(crate) fields: Fields,
    pub(crate) body: Bytes,
    /// Of a stored answer.
    pub(crate) age: Option<Duration>,
}

#[derive(Debug)]
pub(crate) enum Fields {
    /// These.
    Given(HeaderMap),
    /// Those of a stored answer.
    Of(Arc<Answer>),
}

/// An answer that is complete, and what it is for.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) outcome: Outcome,
    pub(crate) head_only: bool,
    /// What other caches are told, if the answer belongs to somebody.
    pub(crate) cache_control: Option<HeaderValue>,
}

impl From<&Entry> for Outcome {
    fn from(entry: &Entry) -> Self {
        Self {
            status: entry.head.status,
            fields: Fields::Of(entry.answer.clone()),
            body: entry.body.clone(),
            age: Some(entry.condition.age),
        }
    }
}

/// With its body, if nobody else has it: one that is not shared yet allocates when it is.
impl From<Entry> for Outcome {
    fn from(mut entry: Entry) -> Self {
        let body = Arc::get_mut(&mut entry.answer).map(|answer| take(&mut answer.body));
        Self {
            status: entry.head.status,
            body: body.unwrap_or_else(|| entry.body.clone()),
            age: Some(entry.condition.age),
            fields: Fields::Of(entry.answer),
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
    /// the answer without them is known). `cache_status`: what is said of this cache.
    pub(crate) fn answer<B>(
        self,
        conditionals: Option<&HeaderMap>,
        cache_status: Option<HeaderValue>,
    ) -> Response<ResponseBody<B>> {
        let Self {
            outcome,
            head_only,
            cache_control,
        } = self;
        let Outcome {
            status,
            fields,
            body,
            age,
        } = outcome;
        let (with_all, afterwards) = match conditionals {
            None => (cache_status, None),
            Some(_) => (None, cache_status),
        };
        let headers = fields.with(Added {
            age: age.map(|age| number(age.as_secs())),
            cache_control,
            cache_status: with_all,
        });
        let (status, mut headers, body) = match conditionals {
            Some(conditionals) => conditional(conditionals, status, headers, body, head_only),
            None => (status, headers, body),
        };
        Added::status(afterwards).append_to(&mut headers);
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

impl Fields {
    fn with(self, added: Added) -> HeaderMap {
        match self {
            // if nobody else has it, the values need not be shared
            Self::Of(answer) => match Arc::try_unwrap(answer) {
                Ok(answer) => answer.head.into_fields_with(added),
                Err(answer) => answer.head.fields_with(added),
            },
            Self::Given(mut headers) => {
                added.append_to(&mut headers);
                headers
            }
        }
    }
}
