//! [`ResponseFuture`]: of a request that passes through, the inner service's own future; of any other one, the
//! cache's.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;

use crate::body::ResponseBody;
use crate::http::cache_status::{Bypass, CacheStatus};
use crate::nesting::Mark;

type Boxed<B, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, E>> + Send>>;

pin_project_lite::pin_project! {
    /// The future of [`PgCacheService`](crate::PgCacheService).
    pub struct ResponseFuture<F, B, E> {
        #[pin]
        inner: Inner<F, B, E>,
    }
}

pin_project_lite::pin_project! {
    #[project = InnerProjection]
    enum Inner<F, B, E> {
        Passed { #[pin] future: F, mark: Mark, reason: Option<Bypass> },
        Cached { future: Boxed<B, E> },
    }
}

impl<F, B, E> ResponseFuture<F, B, E> {
    /// `reason`: what to say in `Cache-Status`.
    pub(crate) const fn passed(future: F, mark: Mark, reason: Option<Bypass>) -> Self {
        Self {
            inner: Inner::Passed {
                future,
                mark,
                reason,
            },
        }
    }

    pub(crate) fn cached(
        future: impl Future<Output = Result<Response<ResponseBody<B>>, E>> + Send + 'static,
    ) -> Self {
        Self {
            inner: Inner::Cached {
                future: Box::pin(future),
            },
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.project() {
            InnerProjection::Passed {
                future,
                mark,
                reason,
            } => {
                let mut response = ready!(future.poll(cx))?.map(ResponseBody::passed);
                if let Some(reason) = reason.filter(|_| !mark.is_claimed()) {
                    let status = response.status();
                    CacheStatus::Bypass { status, reason }.add_to(response.headers_mut());
                }
                Poll::Ready(Ok(response))
            }
            InnerProjection::Cached { future } => future.as_mut().poll(cx),
        }
    }
}

impl<F, B, E> fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
