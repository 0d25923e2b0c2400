//! Reads whose question stands in the body of the request: QUERY, and POST where the route says that it only
//! reads (`safe_post`), as for GraphQL and search.
//!
//! 1. The body is part of the key, with its type and coding. It is read before the store is asked, so it has to
//!    say how long it is, and to be no longer than the route allows; others pass through.
//! 2. The inner service gets a body of the same type, made anew from the bytes.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tower_service::Service;

use crate::body::{ResponseBody, collected};
use crate::call::Caching;
use crate::error::BoxError;
use crate::key::Key;
use crate::plan::Read;

/// A QUERY body that is longer than this passes through, unless the route says otherwise.
pub(crate) const DEFAULT_MAX_QUESTION: usize = 64 << 10;

/// Makes a body of some type out of bytes.
#[derive(Clone)]
pub(crate) struct Rebuild {
    makes: TypeId,
    make: Arc<dyn Fn(Bytes) -> Box<dyn Any> + Send + Sync>,
}

impl Rebuild {
    pub(crate) fn of<B: From<Bytes> + 'static>() -> Self {
        Self {
            makes: TypeId::of::<B>(),
            make: Arc::new(|bytes| Box::new(B::from(bytes))),
        }
    }
}

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rebuild")
    }
}

/// How bodies of this type are made anew: as the application says, or as is known of common types.
fn rebuild_for<B: 'static>(given: Option<&Rebuild>) -> Option<Rebuild> {
    let given = given.cloned();
    #[cfg(feature = "axum")]
    let known = [
        Some(Rebuild::of::<axum::body::Body>()),
        Some(Rebuild::of::<Full<Bytes>>()),
    ];
    #[cfg(not(feature = "axum"))]
    let known = [Some(Rebuild::of::<Full<Bytes>>())];
    given
        .into_iter()
        .chain(known.into_iter().flatten())
        .find(|rebuild| rebuild.makes == TypeId::of::<B>())
}

/// Whether the body of this request can be part of a key.
pub(crate) fn is_question<B: Body + 'static>(
    request: &Request<B>,
    max: usize,
    given: Option<&Rebuild>,
) -> bool {
    let length = request.body().size_hint().exact();
    length.is_some_and(|length| length <= max as u64) && rebuild_for::<B>(given).is_some()
}

impl Caching {
    /// Reads the question, and then goes on as with any other read.
    pub(crate) async fn search<S, RequestBody, B>(
        self,
        inner: S,
        mut read: Read,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Body + Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        // without the body there is no request; the client has gone, or has not kept to its Content-Length
        let announced = body.size_hint().exact().unwrap_or_default();
        let longest = usize::try_from(announced).unwrap_or(usize::MAX);
        let Some(question) = collected(body, longest).await else {
            return Ok(bad_request());
        };
        let made = rebuild_for::<RequestBody>(read.policy.rebuild.as_ref()).and_then(|rebuild| {
            (rebuild.make)(question.clone())
                .downcast::<RequestBody>()
                .ok()
        });
        let Some(body) = made else {
            return Ok(bad_request());
        };
        read.key = key_of(read.key, &parts.method, &parts.headers, &question);
        self.read(inner, read, Request::from_parts(parts, *body))
            .await
    }
}

fn key_of(key: Key, method: &Method, headers: &HeaderMap, question: &Bytes) -> Key {
    let values = |name| {
        Some(
            headers
                .get_all(name)
                .into_iter()
                .flat_map(|v| [v.as_bytes(), b","].concat())
                .collect(),
        )
    };
    key.variant([
        (":method", Some(method.as_str().into())),
        (CONTENT_TYPE.as_str(), values(CONTENT_TYPE)),
        (CONTENT_ENCODING.as_str(), values(CONTENT_ENCODING)),
        (":body", Some(question.to_vec())),
    ])
}

fn bad_request<B>() -> Response<ResponseBody<B>> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}
