//! [`ResponseFuture`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;

use crate::body::ResponseBody;

type Boxed<B, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, E>> + Send>>;

/// The future of [`PgCacheService`](crate::PgCacheService).
pub struct ResponseFuture<B, E>(Inner<B, E>);

#[allow(clippy::large_enum_variant)] // to box it would cost a hit more than to move it
enum Inner<B, E> {
    /// An answer that was at hand; `None` when it is gone.
    Ready(Option<Response<ResponseBody<B>>>),
    Running(Boxed<B, E>),
}

// nothing in it is pinned but what is in a box
impl<B, E> Unpin for ResponseFuture<B, E> {}

impl<B, E> ResponseFuture<B, E> {
    pub(crate) fn new(
        future: impl Future<Output = Result<Response<ResponseBody<B>>, E>> + Send + 'static,
    ) -> Self {
        Self(Inner::Running(Box::pin(future)))
    }

    pub(crate) const fn ready(answer: Response<ResponseBody<B>>) -> Self {
        Self(Inner::Ready(Some(answer)))
    }
}

impl<B, E> Future for ResponseFuture<B, E> {
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Ready(answer) => match answer.take() {
                Some(answer) => Poll::Ready(Ok(answer)),
                None => panic!("polled after it was ready"),
            },
            Inner::Running(future) => future.as_mut().poll(cx),
        }
    }
}

impl<B, E> fmt::Debug for ResponseFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
