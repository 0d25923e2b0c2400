//! What a handler says about its own answer: [`CacheScope`] while it works, [`DependsOn`], [`Invalidates`],
//! [`NoStore`] and [`Ttl`] with the answer.
//!
//! A snapshot covers every scope at once, so dependencies may be named when the handler knows them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Extensions, Response};

use crate::domain::Scope;

/// What was said, by whatever means.
#[derive(Debug, Clone, Default)]
pub(crate) struct Remarks {
    pub(crate) depends_on: Vec<Scope>,
    pub(crate) invalidates: Vec<Scope>,
    pub(crate) no_store: bool,
    pub(crate) ttl: Option<Duration>,
}

impl Remarks {
    fn add(&mut self, other: Self) {
        let Self {
            depends_on,
            invalidates,
            no_store,
            ttl,
        } = other;
        self.depends_on.extend(depends_on);
        self.invalidates.extend(invalidates);
        self.no_store |= no_store;
        self.ttl = match (self.ttl, ttl) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// What came with the answer.
    pub(crate) fn of<B>(response: &Response<B>) -> Self {
        response.extensions().get().cloned().unwrap_or_default()
    }

    /// For a layer of another engine further out, which wants to know too.
    pub(crate) fn leave_with<B>(&self, response: &mut Response<B>) {
        let Self {
            depends_on,
            invalidates,
            no_store,
            ttl,
        } = self;
        if !depends_on.is_empty() || !invalidates.is_empty() || *no_store || ttl.is_some() {
            response.extensions_mut().insert(self.clone());
        }
    }
}

/// The cache, as a handler sees it: what its answer depends on, how long it is fresh, what it has changed.
///
/// An axum extractor that never fails. Without a cache around the handler it does nothing, so that the handler
/// can be tested alone. Other services find it with [`CacheScope::of`].
///
/// ```
/// # use axum::{Json, extract::Path};
/// # use tower_pgcache::{CacheScope, Domain, domain};
/// const PRODUCT: Domain = domain!("product");
///
/// async fn report(cache: CacheScope, Path(id): Path<u64>) -> String {
///     cache.depends_on(PRODUCT.entity(id));
///     format!("report on product {id}")
/// }
/// ```
#[derive(Debug, Clone, Default)]
pub struct CacheScope(Option<Arc<Mutex<Remarks>>>);

impl CacheScope {
    /// Of the request with these extensions.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    pub(crate) fn active() -> Self {
        Self(Some(Arc::default()))
    }

    /// The answer depends on this scope of the request's tenant.
    pub fn depends_on(&self, scope: impl Into<Scope>) {
        self.remark(|remarks| remarks.depends_on.push(scope.into()));
    }

    /// The answer is fresh for so long, whatever else says. Of several the shortest counts; zero is
    /// [`no_store`](Self::no_store).
    pub fn ttl(&self, ttl: Duration) {
        let ttl = Remarks {
            ttl: Some(ttl),
            ..Remarks::default()
        };
        self.remark(|remarks| remarks.add(ttl));
    }

    /// The answer is not stored.
    pub fn no_store(&self) {
        self.remark(|remarks| remarks.no_store = true);
    }

    /// The handler has changed this scope of the request's tenant: it is invalidated before the client has the
    /// answer, whatever the method and the status.
    pub fn invalidates(&self, scope: impl Into<Scope>) {
        self.remark(|remarks| remarks.invalidates.push(scope.into()));
    }

    fn remark(&self, remark: impl FnOnce(&mut Remarks)) {
        if let Some(mut remarks) = self.lock() {
            remark(&mut remarks);
        }
    }

    /// What was said so far, and what came with the answer.
    pub(crate) fn and(&self, with_the_answer: Remarks) -> Remarks {
        let mut remarks = self
            .lock()
            .map(|mut said| std::mem::take(&mut *said))
            .unwrap_or_default();
        remarks.add(with_the_answer);
        remarks
    }

    fn lock(&self) -> Option<MutexGuard<'_, Remarks>> {
        Some(
            self.0
                .as_ref()?
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// Part of an answer: it depends on this scope of the request's tenant.
///
/// ```
/// # use axum::{extract::Path, response::IntoResponse};
/// # use tower_pgcache::{DependsOn, Domain, domain};
/// const PRODUCT: Domain = domain!("product");
/// async fn report(Path(id): Path<u64>) -> impl IntoResponse {
///     (DependsOn(PRODUCT.entity(id)), "report")
/// }
/// ```
///
/// Services that are not axum call [`apply`](Self::apply).
#[derive(Debug, Clone, Copy)]
pub struct DependsOn<S>(pub S);

/// Part of an answer: this scope of the request's tenant has changed, and is invalidated before the client has
/// the answer.
#[derive(Debug, Clone, Copy)]
pub struct Invalidates<S>(pub S);

/// Part of an answer: it is not stored.
#[derive(Debug, Clone, Copy)]
pub struct NoStore;

/// Part of an answer: it is fresh for so long, whatever else says. Zero is [`NoStore`].
#[derive(Debug, Clone, Copy)]
pub struct Ttl(pub Duration);

macro_rules! remark {
    ($type:ty $(, $generic:ident)?; $self:ident => $remarks:expr) => {
        impl$(<$generic: Into<Scope>>)? $type {
            /// Says so of a response.
            pub fn apply($self, extensions: &mut Extensions) {
                extensions.get_or_insert_default::<Remarks>().add($remarks);
            }
        }

        #[cfg(feature = "axum")]
        impl$(<$generic: Into<Scope>>)? axum::response::IntoResponseParts for $type {
            type Error = std::convert::Infallible;

            fn into_response_parts(
                self,
                mut parts: axum::response::ResponseParts,
            ) -> Result<axum::response::ResponseParts, Self::Error> {
                self.apply(parts.extensions_mut());
                Ok(parts)
            }
        }
    };
}

remark!(DependsOn<S>, S; self => Remarks { depends_on: vec![self.0.into()], ..Remarks::default() });
remark!(Invalidates<S>, S; self => Remarks { invalidates: vec![self.0.into()], ..Remarks::default() });
remark!(NoStore; self => Remarks { no_store: true, ..Remarks::default() });
remark!(Ttl; self => Remarks { ttl: Some(self.0), ..Remarks::default() });

#[cfg(feature = "axum")]
impl<S: Sync> axum::extract::FromRequestParts<S> for CacheScope {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.extensions))
    }
}
