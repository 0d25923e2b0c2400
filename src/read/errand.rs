//! What is known of a fill before the inner service is called.

use std::sync::Arc;

use http::header::IF_MODIFIED_SINCE;
use http::{HeaderMap, Request};

use crate::engine::{Entry, Fill};
use crate::http::cache_status::Forward;
use crate::http::conditional::{revalidation, take_conditionals};
use crate::http::reuse::may_stand_in;
use crate::http::storable::directives;
use crate::plan::{Read, Subject};

/// How a fill is asked for: what is known before the inner service is called.
pub(crate) struct Errand {
    pub(super) read: Read,
    pub(super) subject: Subject,
    /// What is stored, and may be revalidated or stand in for an error.
    pub(super) stored: Option<Arc<Entry>>,
    /// Preconditions and ranges that the cache answers, taken out of the request.
    pub(super) conditionals: Option<HeaderMap>,
    pub(super) answers_conditionals: bool,
    /// Whether the request carries the stored validators.
    pub(super) revalidates: bool,
    /// The request's fields, for answers that vary.
    pub(super) fields: HeaderMap,
    pub(super) why: Forward,
    pub(super) no_store: bool,
    /// An answer to POST counts as fresh only if it says so itself.
    pub(super) explicit_only: bool,
    /// Whether what the handler reads from can tell what it has, once it was asked.
    pub(super) knows_its_source: Option<bool>,
    /// A stored beginning; the request asks for the rest.
    pub(super) completes: Option<Arc<Entry>>,
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
        let says = directives(&entry.head.fields(), self.read.policy.targets());
        may_stand_in(entry.condition, &says, self.read.policy.stale).then_some(entry)
    }
}

/// What the inner service is asked about a stored answer. Of one that a commit has invalidated a date says too
/// little: within the second that it names there may have been a change after the answer (RFC 9110 §8.8.2.2), and
/// only the handler's clock could tell.
fn validators(entry: &Entry) -> Option<HeaderMap> {
    let mut validators = revalidation(&entry.head.fields(), entry.head.etag_is_ours)?;
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
